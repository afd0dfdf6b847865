"""A network as water: transfers share what their two ends can carry; the clock jumps from event
to event, so a distribution of an hour takes milliseconds and always comes out the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vllmdeploy.plan.transfer import Swarm
from vllmdeploy.plan.transfer_pieces import Piece, Transfer


@dataclass(slots=True)
class _Flow:
    transfer: Transfer
    starts_at: float
    left: float
    heard: float
    verified_at: float | None = None


@dataclass(slots=True)
class Fluid:
    """`rates` in bytes/s per host and direction. A dead host's flows stall, and fail `timeout_s`
    later; `start_s` is what a transfer takes before its first byte, `verify_s` after its last;
    `again_s`: before the first byte of one that goes on with the same source."""

    rates: Mapping[str, float]
    start_s: float = 0.0
    verify_s: float = 0.0
    again_s: float = 0.0
    timeout_s: float = 10.0
    dies: Mapping[str, float] = field(default_factory=dict[str, float])
    finished: dict[str, float] = field(default_factory=dict[str, float])
    sent: list[Transfer] = field(default_factory=list[Transfer])
    most_up: int = 0
    now: float = 0.0
    _flows: list[_Flow] = field(default_factory=list[_Flow])

    def run(self, swarm: Swarm, *, at: Sequence[tuple[float, Callable[[], None]]] = ()) -> float:
        """Until everyone that is alive has everything; returns the time it took."""
        waiting = sorted(at, key=lambda each: each[0])
        for _ in range(1_000_000):
            while waiting and waiting[0][0] <= self.now:
                waiting.pop(0)[1]()
            self._flows += [
                _Flow(each, self.now + self._before(each), float(each.piece.size), self.now)
                for each in swarm.next(self.now)
            ]
            for name, piece in swarm.all_came():
                swarm.put_together(name, piece)
            self._note(swarm)
            if not waiting and all(
                swarm.complete(name) or not peer.receives or self._is_dead(name)
                for name, peer in swarm.peers.items()
            ):
                return self.now
            self._advance(swarm, waiting[0][0] if waiting else None)
        raise AssertionError("no end in sight")

    def _before(self, transfer: Transfer) -> float:
        return self.again_s if transfer.goes_on else self.start_s

    def _note(self, swarm: Swarm) -> None:
        for name in swarm.peers:
            if swarm.complete(name):
                self.finished.setdefault(name, self.now)
            up = sum(f.transfer.source == name and f.left > 0 for f in self._flows)
            self.most_up = max(self.most_up, up)

    def _is_dead(self, name: str) -> bool:
        return name in self.dies and self.dies[name] <= self.now

    def _speeds(self) -> dict[int, float]:
        """Fair shares: the fullest line fixes its transfers first, others take what is left."""
        open_flows = {
            id(flow): flow for flow in self._flows if flow.left > 0 and self.now >= flow.starts_at
        }
        speeds = dict.fromkeys((id(flow) for flow in self._flows), 0.0)
        room: dict[tuple[str, str], float] = {}
        using: dict[tuple[str, str], set[int]] = {}
        for key, flow in list(open_flows.items()):
            ends = (("up", flow.transfer.source), ("down", flow.transfer.target))
            if any(self._is_dead(name) for _, name in ends):
                del open_flows[key]
                continue
            for end in ends:
                room[end] = self.rates[end[1]]
                using.setdefault(end, set()).add(key)
        while open_flows:
            tight = min(using, key=lambda end: room[end] / len(using[end]))
            share = room[tight] / len(using[tight])
            for key in using.pop(tight):
                flow = open_flows.pop(key)
                speeds[key] = share
                for end in (("up", flow.transfer.source), ("down", flow.transfer.target)):
                    room[end] -= share
                    if end in using:
                        using[end].discard(key)
                        if not using[end]:
                            del using[end]
        return speeds

    def _advance(self, swarm: Swarm, until: float | None) -> None:
        speeds = self._speeds()
        moments = [each for each in (swarm.wake_at(self.now), until) if each is not None]
        # A real transfer says every second how far it is.
        moments.append(self.now + 1.0)
        moments += [moment for moment in self.dies.values() if moment > self.now]
        for flow in self._flows:
            if flow.verified_at is not None:
                moments.append(flow.verified_at)
            elif self.now < flow.starts_at:
                moments.append(flow.starts_at)
            elif speeds[id(flow)] > 0:
                moments.append(self.now + flow.left / speeds[id(flow)])
            else:
                moments.append(flow.heard + self.timeout_s)
        moment = max(self.now, min(moments))
        for flow in self._flows:
            flow.left -= speeds[id(flow)] * (moment - self.now)
        self.now = moment
        for flow in self._flows:
            if speeds[id(flow)] > 0:
                flow.heard = moment
                swarm.heard(flow.transfer, moment)
        for flow in list(self._flows):
            self._settle(swarm, flow)

    def _settle(self, swarm: Swarm, flow: _Flow) -> None:
        ends = (flow.transfer.source, flow.transfer.target)
        if flow.verified_at is None and flow.left <= 1e-6 and self.now >= flow.starts_at:
            flow.left = 0.0
            swarm.moved(flow.transfer, self.now)
            flow.verified_at = self.now + self.verify_s
        if flow.verified_at is not None and self.now >= flow.verified_at - 1e-9:
            self._flows.remove(flow)
            self.sent.append(flow.transfer)
            swarm.arrived(flow.transfer, self.now)
        elif any(map(self._is_dead, ends)) and self.now >= flow.heard + self.timeout_s - 1e-9:
            self._flows.remove(flow)
            swarm.failed(flow.transfer, self.now)


def pieces(*sizes: int) -> tuple[Piece, ...]:
    return tuple(Piece(number, size) for number, size in enumerate(sorted(sizes, reverse=True)))
