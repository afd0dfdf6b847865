"""How long it takes to reach 64 hosts by SSH and ask each one thing; prints JSON lines.

The sshds listen on loopback addresses, so their work is done by this machine too. Hosts that are
blackholed come on top and never answer. Needs root and openssh-server.

    python bench/ssh_fleet.py --hosts 64
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.sshd import login_user, sshd
from vllmdeploy.core.command import Command
from vllmdeploy.core.host import Host
from vllmdeploy.effects.connect import CONNECTION_STARTS, connect
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.route import SshSettings

USER = "vdbench"
_LISTENERS = 16  # the most addresses that one sshd listens on


@contextmanager
def blackhole() -> Generator[int]:
    """A port whose queue of new connections is full: what is sent to it gets no answer."""
    with ExitStack() as held:
        full = held.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(2):
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        yield int(full.getsockname()[1])


def measure(hosts: list[Host], settings: SshSettings, *, at_once: int) -> dict[str, object]:
    began, cpu = time.monotonic(), time.process_time()
    with connect(hosts, settings, at_once=at_once) as connected:
        for error in connected.failures.values():
            print(error.message, file=sys.stderr)
        connect_s = time.monotonic() - began
        shells = tuple(connected.shells.values())
        answers = each(
            shells, lambda shell: shell.run(Command(("uname", "-n"))).status, at_once=at_once
        )
        total_s = time.monotonic() - began
        return {
            "connect_s": round(connect_s, 2),
            "total_s": round(total_s, 2),
            "own_cpu_s": round(time.process_time() - cpu, 2),
            "answered": answers.count(0),
            "failed": len(connected.failures),
            "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--hosts", type=int, default=64)
    options.add_argument("--blackholed", type=int, default=3)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--at-once", type=int, default=CONNECTION_STARTS)
    given = options.parse_args()
    addresses = [f"127.0.1.{number}" for number in range(1, given.hosts + 1)]
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        # An account of its own: what root's start files do is not what is measured.
        user = held.enter_context(login_user(USER, "/bin/sh", folder / "home", password="unused"))
        servers = [
            held.enter_context(
                sshd(folder / f"sshd{begin}", addresses=addresses[begin:][:_LISTENERS])
            )
            for begin in range(0, len(addresses), _LISTENERS)
        ]
        known, key = folder / "known_hosts", servers[0].key
        known.write_text("".join(each.known_hosts.read_text("utf-8") for each in servers), "utf-8")
        for other in servers:
            public = Path(f"{key}.pub").read_text("utf-8")
            (other.folder / "authorized_keys").write_text(public, "utf-8")
        settings = servers[0].settings(known_hosts=known)
        silent = held.enter_context(blackhole())
        hosts = [
            Host(name=address, address=address, port=server.port, user=user)
            for server in servers
            for address in server.addresses
        ]
        dead = [
            Host(name=f"dead-{number}", address="127.0.0.1", port=silent, user=user)
            for number in range(given.blackholed)
        ]
        for name, chosen in (("all up", hosts), ("some blackholed", [*dead, *hosts])):
            for _ in range(given.rounds):
                figures = measure(chosen, settings, at_once=given.at_once)
                print(json.dumps({"case": name, "hosts": len(chosen), **figures}), flush=True)


if __name__ == "__main__":
    main()
