"""Where things are on a host and inside a node; nothing outside these folders is written."""

from __future__ import annotations

from dataclasses import dataclass

SYSTEM_STATE_ROOT = "/var/lib/vllmdeploy"
USER_STATE_FOLDER = ".local/state/vllmdeploy"

PACKAGE_FILE = "vllmdeploy.zip"
RAY_AUTH_FILE = "ray_token"

# Inside a container.
PACKAGE_MOUNT = "/opt/vllmdeploy"
SECRETS_MOUNT = "/run/vllmdeploy/secrets"
SERVICES_MOUNT = "/run/vllmdeploy/services"
RUN_MOUNT = "/run/vllmdeploy/run"
LOGS_MOUNT = "/var/log/vllmdeploy"
CACHE_MOUNT = "/var/cache/vllmdeploy"


@dataclass(frozen=True, slots=True)
class Layout:
    """The state folder of one cluster on one host."""

    root: str

    @property
    def lock(self) -> str:
        return f"{self.root}/lock"

    @property
    def audit(self) -> str:
        return f"{self.root}/audit.log"

    @property
    def secrets(self) -> str:
        return f"{self.root}/secrets"

    @property
    def ray_secrets(self) -> str:
        """A folder of its own: a Ray node gets to read the Ray token and nothing else."""
        return f"{self.secrets}/ray"

    @property
    def ray_token(self) -> str:
        return f"{self.ray_secrets}/{RAY_AUTH_FILE}"

    @property
    def sync(self) -> str:
        """What lets other hosts of the cluster read models here."""
        return f"{self.root}/sync"

    @property
    def images(self) -> str:
        """Pieces of images on their way from host to host."""
        return f"{self.root}/images"

    @property
    def connections(self) -> str:
        """Sockets of the SSH connections to other hosts that one pull leaves for the next."""
        return f"{self.root}/ssh"

    @property
    def sync_secrets(self) -> str:
        return f"{self.secrets}/sync"

    @property
    def services(self) -> str:
        return f"{self.root}/services"

    @property
    def instances(self) -> str:
        """On the head: the specs of instances outside Ray, wherever they run."""
        return f"{self.root}/instances"

    @property
    def packages(self) -> str:
        return f"{self.root}/pkg"

    @property
    def runs(self) -> str:
        return f"{self.root}/run"

    @property
    def measured(self) -> str:
        """What engines said of their KV caches, for the next plan."""
        return f"{self.root}/cache/measured"

    @property
    def probes(self) -> str:
        return f"{self.root}/cache/probes"

    def package(self, sha: str) -> str:
        return f"{self.packages}/{sha}"

    def run(self, node: str) -> str:
        return f"{self.runs}/{node}"

    def logs(self, node: str) -> str:
        return f"{self.root}/logs/{node}"

    def cache(self, image: str, card: str) -> str:
        """Compiled kernels fit one image and one kind of card, and are kept apart by both."""
        return f"{self.root}/cache/{image}-{card}"
