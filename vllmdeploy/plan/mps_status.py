"""What `mps status` shows: a row for each daemon, in words and as a document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from vllmdeploy.plan.mps import FoundMps, foreign
from vllmdeploy.plan.mps_stop import members, node_of, orphans
from vllmdeploy.tools.mps_found import Daemon, Server


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One daemon, or a host without one."""

    host: str
    name: str
    daemon: Daemon | None = None
    cards: str = "-"
    state: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def lines(self) -> tuple[str, ...]:
        return self.daemon.lines if self.daemon else ()

    @property
    def cells(self) -> tuple[str, ...]:
        one = self.daemon
        if one is None:
            return (self.host, *("-",) * 7, self.state)
        return (
            self.host,
            one.pipe,
            self.cards,
            str(one.pid),
            "?" if one.uid is None else str(one.uid),
            str(len(one.servers)),
            str(len(one.clients)),
            _percentages(one),
            self.state,
        )

    def document(self) -> dict[str, Any]:
        return {
            "host": self.host,
            "state": self.state,
            "cards": self.cards,
            "remarks": list(self.remarks),
            "daemon": asdict(self.daemon) if self.daemon else None,
        }


def rows(cluster: str, host: FoundMps) -> tuple[Row, ...]:
    lost = tuple(_orphans(cluster, host))
    if not host.mps.daemons:
        state = "no daemon" if host.mps.installed else "MPS is not installed"
        return (Row(host=host.name, name="-", state=state, remarks=lost),)
    first, *others = (_row(cluster, host, daemon) for daemon in host.mps.daemons)
    return (replace(first, remarks=(*lost, *first.remarks)), *others)


def _orphans(cluster: str, host: FoundMps) -> Iterator[str]:
    names = ", ".join(one.name for one in orphans(cluster, host))
    if names:
        yield (
            f"without their daemon, as after a reboot: {names}\n"
            f"  -> start both anew: vllmdeploy mps restart --hosts {host.name}"
        )


def _row(cluster: str, host: FoundMps, daemon: Daemon) -> Row:
    by_uuid = {card.uuid: card.index for card in host.found.cards.cards}
    cards = ",".join(str(by_uuid.get(card, card)) for card in daemon.cards) or "all"
    return Row(
        host=host.name,
        name=daemon.pipe,
        daemon=daemon,
        cards=cards,
        state=_state(cluster, daemon),
        remarks=tuple(_remarks(cluster, host, daemon, cards)),
    )


def _state(cluster: str, daemon: Daemon) -> str:
    if daemon.problem:
        return f"does not answer: {daemon.problem}"
    if any(server.faulted for server in daemon.servers):
        return "FAULT"
    state = "static partitions" if daemon.static else "running"
    if not foreign(cluster, daemon):
        return state
    return f"{state}, {f'of cluster {daemon.mark}' if daemon.mark else 'not ours'}"


def _percentages(daemon: Daemon) -> str:
    each = dict.fromkeys(server.percentage for server in daemon.servers if server.percentage)
    shown = ", ".join(f"{one}%" for one in each) or f"{daemon.percentage or '?'}%"
    return f"{len(daemon.partitions)} partitions" if daemon.static else shown


def _remarks(cluster: str, host: FoundMps, daemon: Daemon, cards: str) -> Iterator[str]:
    ours = members(cluster, host)
    for server in daemon.servers:
        state = server.status or "no status"
        who = "?" if server.uid is None else server.uid
        yield f"server {server.pid} of uid {who}: {state}"
        for client in server.clients:
            inside = node_of(client, ours)
            yield f"  client {client}{f' in {inside}' if inside else ''}"
        if server.faulted:
            yield _fault(server, host.name, cards)
    for partition in daemon.partitions:
        yield f"partition {partition}"


def _fault(server: Server, host: str, cards: str) -> str:
    said = server.fault or "the server's log does not say whose"
    which = "" if cards == "all" else f" --cards {cards}"
    return (
        f"a client's fault stopped all engines of this server: {said}\n"
        f"  -> start them anew as a group: vllmdeploy mps restart --hosts {host}{which}"
    )
