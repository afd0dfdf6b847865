"""A Ray cluster on the rig by the commands an operator would type: the yardstick for `up`.

`python -m tests.rig.hand` brings a rig up, times it once, and takes everything away.
"""

from __future__ import annotations

import re
import secrets
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from tests.rig import base
from tests.rig import rig as rigs
from tests.rig.host import Host
from tests.rig.programs import until
from tests.rig.rig import Rig

PREFIX = "hand-ray"
FOLDER = "/root/hand"
PORTS = (
    "--node-manager-port=6380 --object-manager-port=6381 --runtime-env-agent-port=6382 "
    "--dashboard-agent-grpc-port=6383 --dashboard-agent-listen-port=6384 "
    "--metrics-export-port=6385 --min-worker-port=20000 --max-worker-port=20999"
)


def _sudo(host: Host) -> str:
    return "" if host.user == "root" else "sudo -n "


def _docker_run(host: Host, role: str, ray: str) -> str:
    """`ray start` in a container on the host's network, token mounted."""
    return (
        f"{_sudo(host)}docker run --detach --name {PREFIX}-{role} --network host --shm-size 64m "
        f"--ulimit nofile=65536:65536 -v {FOLDER}:/run/hand:ro "
        f"-e RAY_AUTH_MODE=token -e RAY_AUTH_TOKEN_PATH=/run/hand/token "
        f"{base.docker_args()} {base.IMAGE} "
        f"ray start --block {ray} --node-ip-address={host.ip} --num-gpus={host.profile.cards} "
        f"{PORTS} --disable-usage-stats"
    )


def lay_tokens(rig: Rig, hosts: Sequence[Host]) -> None:
    token = secrets.token_hex(32)
    for host in hosts:
        line = f"mkdir -p {FOLDER} && cat >{FOLDER}/token && chmod 600 {FOLDER}/token"
        host.sh(line, stdin=token.encode())


def cards(rig: Rig, head: Host) -> float:
    """All cards that `ray status` reports; 0 while it does not answer."""
    line = f"{_sudo(head)}docker exec {PREFIX}-head ray status --address {head.ip}:6379 2>&1"
    found = re.search(r"/([\d.]+) GPU", rig.ssh(head, line, check=False))
    return float(found.group(1)) if found else 0.0


def up(rig: Rig, hosts: Sequence[Host] | None = None) -> float:
    """Seconds from the first command until `ray status` shows every card."""
    head, *workers = rig.hosts if hosts is None else hosts
    lay_tokens(rig, (head, *workers))
    started = time.monotonic()
    head_line = "--head --port=6379 --dashboard-host=127.0.0.1 --dashboard-port=8265"
    rig.ssh(head, _docker_run(head, "head", head_line))
    until("the Ray head accepts nodes", lambda: cards(rig, head) or None, limit_s=90, every_s=0.2)

    def join(host: Host) -> None:
        rig.ssh(host, _docker_run(host, "worker", f"--address={head.ip}:6379"))

    with ThreadPoolExecutor() as pool:
        list(pool.map(join, workers))
    wanted = sum(host.profile.cards for host in (head, *workers))
    until(f"{wanted} cards", lambda: cards(rig, head) == wanted, limit_s=90, every_s=0.2)
    return time.monotonic() - started


def down(rig: Rig) -> None:
    for host in rig.hosts:
        host.sh(f"docker ps -aq --filter name={PREFIX} | xargs -r docker rm -f; rm -rf {FOLDER}")


def main() -> None:
    rig = rigs.start()
    try:
        sys.stdout.write(f"by hand, {len(rig.hosts)} hosts: {up(rig):.1f} s\n")
        down(rig)
    finally:
        rig.remove()


if __name__ == "__main__":
    main()
