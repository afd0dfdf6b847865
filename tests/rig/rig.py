"""A fleet of rig hosts: made, handed to tests, looked at when one fails, and taken away again."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from tests.rig import base, claim, network
from tests.rig.claim import WORKTREE
from tests.rig.disk import Profile
from tests.rig.host import PATH, Host
from tests.rig.programs import run

CACHE = WORKTREE / ".cache"
ARTIFACTS = WORKTREE / ".rig" / "artifacts"
NEEDED = (
    *("debootstrap", "dockerd", "docker", "ip", "tc", "nsenter", "unshare"),
    *("openssl", "ssh-keygen", "sudo"),
)

SLOW = network.Nic(name="eth0", subnet="a", rate="400mbit", speed_mbit=1_000)
FAST = network.Nic(name="eth1", subnet="b", speed_mbit=100_000)
MIXED_FLEET = (
    Profile(name="head", nics=(network.Nic(), FAST)),
    Profile(name="sudoer", user="deploy"),
    # The route to the head leads over the slow interface; both hosts have the fast one too.
    Profile(name="twonics", nics=(SLOW, FAST)),
    Profile(name="bare", without=("rsync",)),
)


def reason_it_cannot_run() -> str | None:
    """Why this machine cannot have a rig, if so."""
    if not sys.platform.startswith("linux"):
        return "the rig needs Linux"
    if os.geteuid() != 0:
        return "the rig needs root"
    search = f"{os.environ.get('PATH', '')}:{PATH}"
    missing = [program for program in NEEDED if shutil.which(program, path=search) is None]
    return f"the rig needs {', '.join(missing)}: run scripts/setup.sh" if missing else None


def _on_all(hosts: Iterable[Host], action: Callable[[Host], None]) -> None:
    with ThreadPoolExecutor() as pool:
        list(pool.map(action, hosts))


@dataclass(slots=True)
class Rig:
    """Hosts that are up, and how an operator on this machine reaches them."""

    number: int
    folder: Path
    hosts: tuple[Host, ...]
    image: str
    _lock: TextIO

    def __getitem__(self, name: str) -> Host:
        return next(host for host in self.hosts if host.name == name)

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def workers(self) -> tuple[Host, ...]:
        return self.hosts[1:]

    @property
    def key(self) -> Path:
        return self.folder / "operator/id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "operator/known_hosts"

    # The operator

    def write_config(
        self, folder: Path, *, hosts: Sequence[Host] | None = None, **keys: str | int
    ) -> Path:
        """The two files for these hosts (all, unless told), the first of them the head; `keys` are
        added or replace. Returns config.env."""
        head, *workers = self.hosts if hosts is None else hosts
        lines = [f"{head.address} head=yes ray_gpus={head.profile.cards}"]
        lines += [f"{worker.address} ray_gpus={worker.profile.cards}" for worker in workers]
        nodes = folder / "worker_nodes.txt"
        nodes.write_text("\n".join((*lines, "")))
        settings: dict[str, str | int] = {
            "HEAD_HOST": head.address,
            "WORKER_NODES_FILE": str(nodes),
            "SSH_KEY": str(self.key),
            "SSH_KNOWN_HOSTS": str(self.known_hosts),
            "IMAGE": self.image,
            "ACCELERATOR": "cpu",
            "SHM_SIZE": "64m",
            "EXTRA_DOCKER_ARGS": base.docker_args(),
            **keys,
        }
        config = folder / "config.env"
        config.write_text("".join(f"{key}={_quoted(value)}\n" for key, value in settings.items()))
        return config

    def vllmdeploy(
        self,
        *argv: str,
        folder: Path,
        stdin: bytes = b"",
        limit_s: float = 180,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Our command line, run in a folder with the two files, to its end."""
        program = str(Path(sys.prefix, "bin/vllmdeploy"))
        environment = {**self.operator_environment(), **(env or {})}
        return run(
            (program, *argv),
            stdin=stdin,
            limit_s=limit_s,
            check=False,
            env=environment,
            cwd=str(folder),
        )

    def killed(
        self, *argv: str, folder: Path, when: Callable[[str], bool], limit_s: float = 180
    ) -> tuple[str, ...]:
        """Our command line, killed by SIGKILL as soon as it says a line for which `when` is true.
        Returns the lines; the last of them is that one, unless it came to its end before."""
        said: list[str] = []
        with subprocess.Popen(
            (str(Path(sys.prefix, "bin/vllmdeploy")), *argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.operator_environment(),
            cwd=folder,
        ) as program:
            assert program.stdout is not None
            late = threading.Timer(limit_s, program.kill)
            late.start()
            for line in program.stdout:
                said.append(line.rstrip("\n"))
                if when(said[-1]):
                    program.kill()
                    break
            late.cancel()
        return tuple(said)

    def operator_environment(self) -> dict[str, str]:
        """An operator with an empty home and no agent."""
        home = str(self.folder / "operator")
        return {"PATH": f"{sys.prefix}/bin:{PATH}", "HOME": home, "LANG": "C.UTF-8", "TERM": "dumb"}

    def ssh(self, host: Host, command: str, *, check: bool = True) -> str:
        """What a command prints, run by OpenSSH's own client."""
        options = ("-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={self.known_hosts}")
        argv = ("ssh", "-F", "none", "-i", str(self.key), *options, host.address, command)
        return run(argv, check=check).stdout

    # Its life

    def collect(self, test: str) -> Path:
        """What helps to understand a failure, one file a host."""
        folder = ARTIFACTS / "".join(c if c.isalnum() or c in "-_." else "_" for c in test)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for host in self.hosts:
            looked = host.sh(LOOK, limit_s=30, check=False)
            (folder / f"{host.name}.txt").write_text(looked.stdout + looked.stderr)
        return folder

    def how_to_enter(self) -> str:
        return "\n".join(f"{host.name}: {shlex.join(host.enter('bash'))}" for host in self.hosts)

    def remove(self) -> None:
        _on_all(self.hosts, Host.power_off)
        claim.sweep(self.number)
        self._lock.close()

    def abandon(self) -> None:
        """Leave it running for someone to look at; the next run takes it away."""
        for host in self.hosts:
            host.let_go()
        os.dup(self._lock.fileno())  # holds the lock for as long as this process lives
        self._lock.close()


LOOK = """
exec 2>&1
docker() { timeout 5 /usr/bin/env docker "$@"; }
echo "== ps"; ps -eo pid,ppid,etimes,args
echo "== ss"; ss -tlnp
echo "== docker ps"; docker ps --all --no-trunc
for id in $(docker ps --all --quiet); do
    echo "== inspect $id"; docker inspect "$id"
    echo "== logs $id"; docker logs --tail 200 "$id"
done
cd /var/lib/vllmdeploy
for file in */audit.log */logs/*/*.log /var/log/dockerd.log; do
    [ -f "$file" ] && echo "== $file" && tail -n 200 "$file"
done
"""


def _quoted(value: str | int) -> str:
    text = str(value)
    return shlex.quote(text) if " " in text else text


def start(profiles: Sequence[Profile] = MIXED_FLEET) -> Rig:
    """Bring a fleet up; the image is made first where it is not cached."""
    golden = base.golden_engine(CACHE)
    if any(profile.engine for profile in profiles) and not golden.exists():
        _forge(golden)
    return _start(profiles, golden)


def _start(profiles: Sequence[Profile], golden: Path | None) -> Rig:
    number, lock = claim.claim()
    folder = claim.folder(number)
    hosts = tuple(
        Host(profile, number, network.FIRST_HOST + index, folder / profile.name)
        for index, profile in enumerate(profiles)
    )
    rig = Rig(number, folder, hosts, base.IMAGE, lock)
    rig.key.parent.mkdir(parents=True)
    run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(rig.key)))
    authorized = rig.key.with_suffix(".pub").read_text()

    def bring_up(host: Host) -> None:
        engine = golden if host.profile.engine else None
        host.install(authorized=authorized, golden=engine)
        host.boot()

    try:
        network.lay_wire(number)
        _on_all(hosts, bring_up)
    except BaseException:
        rig.remove()
        raise
    rig.known_hosts.write_text("".join(f"{host.ip} {host.public_key}" for host in hosts))
    return rig


def _forge(golden: Path) -> None:
    """Make the image inside a host of its own and keep that host's engine folder."""
    CACHE.mkdir(exist_ok=True)
    started = time.monotonic()
    rig = _start((Profile(name="forge"),), None)
    try:
        system = rig.folder / "base"
        base.debootstrap(system)
        base.tar_into(system, rig.head.enter("docker", "import", "-", base.IMAGE))
        rig.head.stop_docker()
        (rig.head.disk.docker / "engine-id").unlink(missing_ok=True)
        rig.head.power_off()
        rig.head.disk.docker.rename(golden)
    finally:
        rig.remove()
    sys.stderr.write(f"rig: base image made in {time.monotonic() - started:.0f} s\n")
