"""NVIDIA cards of a rig host: its tool shows them, and nothing is behind them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.rig.host import Host
from tests.support import mps_stand_in

# Docker looks for it when it starts, and only then takes `--gpus`; it runs before each container.
_HOOK = "nvidia-container-runtime-hook"


def show(host: Host, uuids: Sequence[str], *, memory_mib: int = 81_559) -> None:
    """NVIDIA's programs, which speak of these cards."""
    for name, text in mps_stand_in.files(uuids, memory_mib=memory_mib).items():
        _program(host, name, text)


def let_docker_hand_them_out(host: Host) -> None:
    """`--gpus` is accepted from now on, and brings nothing into a container."""
    _program(host, _HOOK, "#!/bin/sh\n")
    host.stop_docker()
    host.start_docker()


def _program(host: Host, name: str, text: str) -> None:
    host.sh('cat >"$1" && chmod 755 "$1"', f"/usr/local/bin/{name}", stdin=text.encode())
