"""What a gateway is told: its upstreams, its doors, its limits."""

from __future__ import annotations

from dataclasses import dataclass, field

from vllmdeploy.gateway.address import Network
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.wire.limits import ClientLimits

NO_WORKER: tuple[int, tuple[int, ...]] = (-1, ())


@dataclass(frozen=True, slots=True)
class UpstreamSpec:
    """One upstream as it was asked for; without models, the engine is asked which it has.

    The last three numbers are only told to those who ask for /health; 0 is not known.
    `max_workers`: threads that it renders requests with. `drain`: it gets nothing new, and what it
    works on goes on to its end.
    """

    id: str
    url: str
    models: tuple[str, ...] = ()
    weight: float = 1.0
    cost: float = 1.0
    limit: int = 256
    generation: int = 0
    key_file: str = ""
    tensor_parallel_size: int = 0
    max_num_seqs: int = 0
    max_workers: int = 0
    drain: bool = False


@dataclass(frozen=True, slots=True)
class FleetSpec:
    """The part of a gateway's configuration that may change while it runs."""

    upstreams: tuple[UpstreamSpec, ...] = ()
    policy: str = "adaptive"
    scheduling: str = "adaptive"
    default_model: str = ""


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    name: str = "vllm"
    host: str = "127.0.0.1"
    port: int = 8000
    descriptor: int = -1
    keyless: bool = False
    allow: tuple[Network, ...] = ()
    keys_file: str = ""
    admin_key_file: str = ""
    config_file: str = ""
    state_file: str = ""
    files_folder: str = ""
    files_size: int = 10 << 30
    takeover: str = ""
    access_log: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    upstream_networks: tuple[Network, ...] = ()
    batch_size: int = 32
    prompts_max: int = 1024
    choices_max: int = 64
    limits: ClientLimits = field(default_factory=ClientLimits)
    thresholds: Thresholds = field(default_factory=Thresholds)
    fleet: FleetSpec = field(default_factory=FleetSpec)
    # With several workers: how each is begun, and, of one, its channel and its sockets.
    workers: int = 1
    arguments: tuple[str, ...] = ()
    worker: tuple[int, tuple[int, ...]] = NO_WORKER


def share(limit: int, workers: int) -> int:
    """Of a limit on all of them together; none has nothing at all."""
    return -(-limit // workers)
