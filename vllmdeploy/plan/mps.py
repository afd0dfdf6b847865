"""MPS daemons: which a host gets, and the steps that start them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vllmdeploy.core.card import Card
from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.plan import Draft, Run, Step, Wait
from vllmdeploy.errors import last_line
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.tools import files, mps
from vllmdeploy.tools.mps_found import Daemon, Mps, saved_modes

Per = Literal["card", "host"]
EXCLUSIVE = "EXCLUSIVE_PROCESS"
_START_S = 30.0
_STATIC_HINT = (
    "static partitioning needs a driver whose nvidia-cuda-mps-control knows -S, and Ampere or newer"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MpsWanted:
    """`static`: chunks of each partition, made on every card; `uid`: who the engines run as,
    where that is known; `kept`: by pipe, what a daemon's percentage was before it starts anew."""

    cluster: str
    pipe: str
    log: str
    per: Per = "card"
    cards: tuple[int, ...] = ()
    exclusive: bool = False
    static: tuple[int, ...] = ()
    percentage: int | None = None
    kept: Mapping[str, int] = field(default_factory=dict[str, int])
    uid: int | None = None
    keep_days: int = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundMps:
    """A host and what MPS does on it."""

    found: FoundHost
    mps: Mps

    @property
    def name(self) -> str:
        return self.found.host.name

    @property
    def uid(self) -> int:
        """Whom a daemon of ours runs as."""
        return 0 if self.found.access.sudo_files else self.found.access.uid

    @property
    def saved_modes(self) -> str:
        return saved_modes(self.found.access.layout.root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What one daemon serves: a card, or all usable cards of the host."""

    name: str
    pipe: str
    log: str
    cards: tuple[Card, ...]

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(card.uuid or str(card.index) for card in self.cards)

    def serves(self, daemon: Daemon) -> bool:
        """Whether the daemon has one of these cards; one that was told none has all."""
        told = set(daemon.cards)
        return not told or any(told & {card.uuid, str(card.index)} for card in self.cards)


def scopes(wanted: MpsWanted, found: FoundHost) -> tuple[Scope, ...]:
    """A daemon of its own for each card, since a fault stops all clients of a daemon; or one."""
    usable = tuple(
        card
        for card in found.cards.cards
        if not card.problem
        and (found.host.gpus is None or card.index in found.host.gpus)
        and (not wanted.cards or card.index in wanted.cards)
    )
    if not usable:
        return ()
    if wanted.per == "host":
        return (Scope(name="all cards", pipe=wanted.pipe, log=wanted.log, cards=usable),)
    return tuple(card_scope(wanted.pipe, wanted.log, card) for card in usable)


def card_scope(pipe: str, log: str, card: Card) -> Scope:
    folder = f"card-{card.index}"
    return Scope(
        name=f"card {card.index}", pipe=f"{pipe}/{folder}", log=f"{log}/{folder}", cards=(card,)
    )


def foreign(cluster: str, daemon: Daemon) -> bool:
    return daemon.mark != cluster


def start(draft: Draft, wanted: MpsWanted, host: FoundMps, needs: tuple[str, ...] = ()) -> None:
    """Daemons for all scopes that have none."""
    missing = [one for one in scopes(wanted, host.found) if host.mps.at(one.pipe) is None]
    start_scopes(draft, wanted, host, missing, needs, cause="not running")
    for scope in scopes(wanted, host.found):
        daemon = host.mps.at(scope.pipe)
        asked = wanted.percentage
        if daemon and asked is not None and daemon.percentage != str(asked):
            before = daemon.percentage or "unknown"
            _percentage(draft, host, scope, asked, f"it is {before}; for new servers", needs)


def start_scopes(
    draft: Draft,
    wanted: MpsWanted,
    host: FoundMps,
    missing: Sequence[Scope],
    needs: tuple[str, ...],
    *,
    cause: str,
) -> tuple[str, ...]:
    """The keys of the steps after which each daemon can be used."""
    if wanted.exclusive and missing:
        needs = _exclusive(draft, host, [card for one in missing for card in one.cards], needs)
    return tuple(_start_one(draft, wanted, host, scope, needs, cause) for scope in missing)


def _start_one(
    draft: Draft,
    wanted: MpsWanted,
    host: FoundMps,
    scope: Scope,
    needs: tuple[str, ...],
    cause: str,
) -> str:
    spec = mps.DaemonSpec(
        pipe=scope.pipe,
        log=scope.log,
        cluster=wanted.cluster,
        cards=scope.ids,
        static=bool(wanted.static),
    )
    made = _run(draft, host, "prepare", f"MPS folders of {scope.name}", mps.folders(spec), needs)
    clean = mps.clean_logs(scope.log, days=wanted.keep_days)
    why = f"older than {wanted.keep_days} days, or large"
    cleaned = _run(draft, host, "clean", f"MPS logs of {scope.name}", clean, (made,), cause=why)
    hint = _STATIC_HINT if wanted.static else f"see {scope.log}/control.log on {host.name}"
    begun = _run(
        draft, host, "start", _subject(scope), mps.start(spec), (cleaned,), cause=cause, hint=hint
    )
    last = _await(draft, host, scope, begun)
    if wanted.percentage is not None:
        last = _percentage(draft, host, scope, wanted.percentage, "--percentage", (last,))
    elif scope.pipe in wanted.kept:
        last = _percentage(draft, host, scope, wanted.kept[scope.pipe], "as it was", (last,))
    return _partitioned(draft, wanted, host, scope, last)


def _subject(scope: Scope) -> str:
    return f"MPS daemon of {scope.name}"


def _await(draft: Draft, host: FoundMps, scope: Scope, begun: str) -> str:
    access = host.found.access
    question = mps.ask(scope.pipe, "get_default_active_thread_percentage")

    def missing(result: Result) -> str | None:
        return None if result.ok else last_line(result.output)

    log = ("the daemon's log", access.of(mps.log_end(scope.log)))
    waiting = Wait(access.of(question), missing, limit_s=_START_S, every_s=0.2, explain=(log,))
    return draft.add(
        Step(
            host=host.name,
            verb="await",
            subject=_subject(scope),
            cause="it answers",
            action=waiting,
            needs=(begun,),
            hint=f"see {scope.log}/control.log on {host.name}",
        )
    )


def _percentage(
    draft: Draft, host: FoundMps, scope: Scope, percent: int, cause: str, needs: tuple[str, ...]
) -> str:
    command = mps.percentage(scope.pipe, percent)
    subject = f"{percent}% of threads on {scope.name}"
    return _run(draft, host, "set", subject, command, needs, cause=cause)


def _partitioned(draft: Draft, wanted: MpsWanted, host: FoundMps, scope: Scope, last: str) -> str:
    for card in scope.cards:
        for number, chunks in enumerate(wanted.static):
            made = mps.partition(scope.pipe, card.uuid or str(card.index), chunks)
            subject = f"partition {number} of card {card.index}, {chunks} chunks"
            cause = "--partitions"
            last = _run(draft, host, "make", subject, made, (last,), cause=cause, hint=_STATIC_HINT)
    return last


def _exclusive(
    draft: Draft, host: FoundMps, cards: Sequence[Card], needs: tuple[str, ...]
) -> tuple[str, ...]:
    """What a card's mode was is on the host before the mode changes."""
    modes = host.mps.modes
    change = [card for card in cards if modes.get(card.uuid, "").upper() != EXCLUSIVE]
    if not change:
        return needs
    before = {card.uuid: modes.get(card.uuid) or "Default" for card in change}
    saved = write_modes(host, {**before, **host.mps.saved})
    kept = _run(draft, host, "remember", "compute modes", saved, needs, cause="restored at stop")
    return tuple(
        _run(
            draft,
            host,
            "set",
            f"compute mode of card {card.index} to {EXCLUSIVE}",
            mps.compute_mode(card.uuid, EXCLUSIVE),
            (kept,),
            cause=f"--exclusive; it is {before[card.uuid]}",
            hint="without rights to do that, leave --exclusive out",
        )
        for card in change
    )


def write_modes(host: FoundMps, modes: Mapping[str, str]) -> Command:
    text = "".join(f"{card} {mode}\n" for card, mode in sorted(modes.items()))
    return files.write(host.saved_modes, text.encode())


def _run(
    draft: Draft,
    host: FoundMps,
    verb: str,
    subject: str,
    command: Command,
    needs: tuple[str, ...],
    *,
    cause: str = "for the daemon",
    hint: str = "",
) -> str:
    return draft.add(
        Step(
            host=host.name,
            verb=verb,
            subject=subject,
            cause=cause,
            action=Run(host.found.access.of(command)),
            needs=needs,
            hint=hint,
        )
    )
