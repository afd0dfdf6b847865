"""An operator with the two files of a rig's hosts in a folder, who gives our commands."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig import look
from tests.rig.host import Host
from tests.rig.programs import until
from tests.rig.rig import Rig

Done = subprocess.CompletedProcess[str]
STATE = "/var/lib/vllmdeploy/vllm"
# What a plain `down` keeps: who did what, secrets, specs, logs, and compiled kernels.
KEPT = tuple(
    f"{STATE}/{name}" for name in ("audit.log", "secrets/", "services/", "logs/", "cache/")
)
JOIN_LIMIT_S = 120.0


@dataclass(slots=True)
class Operator:
    """Works on some of a rig's hosts, the first of them the head."""

    rig: Rig
    folder: Path
    hosts: tuple[Host, ...]
    settings: dict[str, str | int] = field(default_factory=dict[str, "str | int"])

    def writes(self, *hosts: Host, **keys: str | int) -> None:
        """The two files anew: these hosts (as before, unless told), these keys on top."""
        self.hosts = hosts or self.hosts
        self.settings.update(keys)
        self.rig.write_config(self.folder, hosts=self.hosts, **self.settings)

    def writes_lines(self, lines: Mapping[str, str]) -> None:
        """worker_nodes.txt with these words behind the addresses, by the host's name."""
        text = "".join(f"{host.address} {lines[host.name]}\n" for host in self.hosts)
        (self.folder / "worker_nodes.txt").write_text(text)

    def runs(self, *argv: str, limit_s: float = 180) -> Done:
        return self.rig.vllmdeploy(*argv, folder=self.folder, limit_s=limit_s)

    def succeeds(self, *argv: str) -> Done:
        done = self.runs(*argv)
        assert done.returncode == 0, done.stderr
        return done

    def up(self) -> Done:
        return self.succeeds("up", "--yes")

    def down(self, *argv: str) -> Done:
        return self.succeeds("down", "--yes", *argv)

    def status(self) -> dict[str, Any]:
        """`status --json`, its hosts by the rig's names."""
        document: dict[str, Any] = json.loads(self.succeeds("status", "--json").stdout)
        names = {host.ip: host.name for host in self.hosts}
        return {names[row["host"]]: row for row in document["hosts"]}

    def is_whole(self) -> bool:
        """Whether Ray itself reports every host and all of its cards, and nobody else; it takes
        seconds to notice a loss, so Docker is asked as well."""
        return all(map(runs_node, self.hosts)) and (
            look.cluster(self.rig, head=self.hosts[0]) == cards(self.hosts)
        )

    def becomes_whole(self) -> None:
        until(f"Ray reports {cards(self.hosts)}", self.is_whole, limit_s=JOIN_LIMIT_S, every_s=0.5)

    def gets_back(self, host: Host, gone: str) -> None:
        """Until the cluster is whole with another Ray node on this host than the one that went."""

        def is_back() -> bool:
            now = look.raylets(self.hosts[0]).get(host.ip)
            return now not in (None, gone) and self.is_whole()

        until(f"{host.name} is back", is_back, limit_s=JOIN_LIMIT_S, every_s=0.5)

    def raylet(self, host: Host) -> str:
        return look.raylets(self.hosts[0])[host.ip]

    def ids(self) -> dict[str, str]:
        return look.ids(self.rig)


def cards(hosts: Sequence[Host]) -> dict[str, int]:
    return {host.ip: host.profile.cards for host in hosts}


def node(host: Host) -> look.Container:
    """Our one node on this host."""
    (found,) = (one for one in look.containers(host).values() if "vllmdeploy.role" in one.labels)
    return found


def runs_node(host: Host) -> bool:
    return any(
        one.running for one in look.containers(host).values() if "vllmdeploy.role" in one.labels
    )


def operator(rig: Rig, folder: Path, *hosts: Host, **keys: str | int) -> Operator:
    made = Operator(rig, folder, hosts or rig.hosts)
    made.writes(**keys)
    return made
