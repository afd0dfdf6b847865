"""What the ranks of one engine on several hosts, without Ray, decide from what they hear: pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

SILENT_S = 10.0
JOIN_S = 60.0
_UP = ("starting", "running", "stopping")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """One rank's place. `hosts`: (name, IP) in the order of ranks; `port`: where the first rank's
    warden listens; `generation`: ranks of another one have no part in this engine."""

    index: int
    hosts: tuple[tuple[str, str], ...]
    port: int
    generation: str

    @property
    def leads(self) -> bool:
        return self.index == 0

    def words(self, index: int) -> str:
        return f"rank {index} on {self.hosts[index][0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """What one rank's warden says of it. `run` names the start of the first rank that this one
    belongs to; it is empty while the process is not up. `failed`: it ended by itself."""

    state: str = ""
    reason: str = ""
    run: str = ""
    failed: bool = False
    failures: int = 0
    exit_code: int | None = None
    lines: tuple[str, ...] = ()

    @property
    def up(self) -> bool:
        return self.state in _UP

    def document(self) -> dict[str, object]:
        return {
            "state": self.state,
            "reason": self.reason,
            "run": self.run,
            "failed": self.failed,
            "failures": self.failures,
            "exit_code": self.exit_code,
            "lines": list(self.lines),
        }


def read_rank(shown: Mapping[str, Any]) -> Rank:
    """From another warden's message; ValueError says that it is none."""
    code, lines = shown.get("exit_code"), shown.get("lines")
    try:
        return Rank(
            state=str(shown["state"]),
            reason=str(shown["reason"]),
            run=str(shown["run"]),
            failed=shown["failed"] is True,
            failures=int(shown["failures"]),
            exit_code=code if isinstance(code, int) else None,
            lines=tuple(map(str, cast("list[object]", lines))) if isinstance(lines, list) else (),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a rank's message: {error}") from error


@dataclass(frozen=True, slots=True)
class Heard:
    """A rank as it was last heard of, and when."""

    rank: Rank
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The first rank's present start, since when it is, and which ranks were seen in it."""

    name: str = ""
    since: float = 0.0
    joined: frozenset[int] = frozenset()


def joined(run: Run, heard: Mapping[int, Heard]) -> Run:
    """The same run with all ranks that say they are in it."""
    now_in = {index for index, one in heard.items() if one.rank.run == run.name}
    if not run.name or now_in <= run.joined:
        return run
    return Run(name=run.name, since=run.since, joined=run.joined | now_in)


def first_lacks(ranks: Ranks, run: Run, heard: Mapping[int, Heard], now: float) -> str:
    """Why the first rank may not start or go on, by what the others say; or nothing."""
    for index in range(1, len(ranks.hosts)):
        one = heard.get(index)
        if one is None or now - one.at > SILENT_S:
            return f"waiting for {ranks.words(index)}: its warden is not heard"
        why = _keeps_up(run, index, one.rank, now) if run.name else _not_waiting(one.rank)
        if why:
            return f"{ranks.words(index)} {why}"
    return ""


def others_failed(ranks: Ranks, heard: Mapping[int, Heard], now: float) -> str:
    """Who is to blame when the first rank ended by itself; nothing where it was the first to."""
    for index in range(1, len(ranks.hosts)):
        one = heard.get(index)
        if one is None or now - one.at > SILENT_S:
            return f"waiting for {ranks.words(index)}: its warden is not heard"
        if one.rank.failed and not one.rank.up:
            return f"{ranks.words(index)} ended: {_state(one.rank)}"
    return ""


def _not_waiting(rank: Rank) -> str:
    """All others wait before the first begins: it is to meet them, and nothing older."""
    return "" if rank.state == "waiting" else f"is {_state(rank)}"


def _keeps_up(run: Run, index: int, rank: Rank, now: float) -> str:
    if rank.run == run.name:
        return ""
    if index in run.joined:
        return f"ended: {_state(rank)}"
    if rank.failures and not rank.up and rank.state != "waiting":
        return f"is {_state(rank)}"
    return f"did not start within {JOIN_S:g} s" if now - run.since > JOIN_S else ""


def _state(rank: Rank) -> str:
    return f"{rank.state} ({rank.reason})" if rank.reason else rank.state


def other_lacks(ranks: Ranks, first: Heard | None, mine: str, now: float) -> str:
    """Why another rank than the first may not start or go on. `mine`: the run that it is up in."""
    if first is None or now - first.at > SILENT_S:
        return f"waiting for {ranks.words(0)}: its warden is not heard"
    if not first.rank.run:
        return f"{ranks.words(0)} is {_state(first.rank)}"
    return f"{ranks.words(0)} began anew" if mine and mine != first.rank.run else ""
