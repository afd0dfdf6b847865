"""Engines take each other's place one after another, and the gateway loses no request over it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from vllmdeploy.core.command import Result
from vllmdeploy.core.plan import Plan, Wait
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.service_gateway import Offering
from vllmdeploy.plan.service_gateways import Gateways
from vllmdeploy.plan.service_replicas import engines_of
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices, inside
from vllmdeploy.tools import gateway_page, http_page
from vllmdeploy.tools.vllm_services import Service

_HEARS_S = 10.0  # a gateway takes its file over within a second
_READY_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One engine and the file that its warden runs it by."""

    service: Service
    content: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What runs, and what takes its place; either may be nothing: then it only comes or goes."""

    before: Version | None
    after: Version | None

    @property
    def name(self) -> str:
        version = self.after or self.before
        return version.service.name if version else ""


@dataclass(slots=True, kw_only=True)
class Rolling:
    """Writes turns into a plan. `serving`: what the gateways know by then, by engine name.
    `answering`: those that run; without one there is nobody to lose a request."""

    ground: Ground
    gateways: Gateways
    serving: dict[str, Service]
    answering: tuple[Offering, ...]

    def turn(self, one: Turn, cause: str, needs: tuple[str, ...]) -> tuple[str, ...]:
        if one.before is not None:
            needs = self._let_go(one.before.service, needs)
        if one.before is not None and (one.after is None or one.before.service.executor == "mp"):
            # Ranks elsewhere have files of their own, which the new placement may not replace.
            before = one.before.service
            needs = steps.remove(self.ground, before.name, cause, needs, ranks=before.placement)
        if one.after is None:
            return self._tell(f"end of {one.name}", cause, needs)
        new = one.after.service
        needs = (steps.write(self.ground, new.name, one.after.content, cause, needs),)
        loaded = "its engine loads and answers a canary"
        needs = (steps.await_answer(self.ground, new, loaded, needs, fresh=True),)
        self.serving[new.name] = new
        return self._usable(new, self._tell(new.name, cause, needs))

    def take_back(self, service: Service, needs: tuple[str, ...]) -> tuple[str, ...]:
        """It was to go and still runs: the gateway sends it requests again."""
        self.serving[service.name] = service
        return self._usable(service, self._tell(service.name, "it stays", needs))

    def _let_go(self, service: Service, needs: tuple[str, ...]) -> tuple[str, ...]:
        """Nothing new is sent to it, and all that was is answered, in the time that requests at
        work get; what is left then gets as long again from the engine itself."""
        if not self.answering:
            self.serving.pop(service.name, None)
            return needs
        told = self.gateways.tell(
            [*self.serving.values()],
            "drain",
            f"{service.name} in {self.gateways.name}",
            "it gets no new requests",
            needs,
            draining=service.name,
        )
        self.serving.pop(service.name, None)
        return self._ask(
            f"last answer of {service.name}",
            "no request is cut off",
            _at_work(service.name),
            self.ground.wanted.drain_s + _HEARS_S,
            told,
            at_most=True,
        )

    def _tell(self, subject: str, cause: str, needs: tuple[str, ...]) -> tuple[str, ...]:
        return self.gateways.tell(
            [*self.serving.values()],
            "write",
            f"{self.gateways.name}'s instances: {subject}",
            cause,
            needs,
        )

    def _usable(self, service: Service, needs: tuple[str, ...]) -> tuple[str, ...]:
        if not self.answering:
            return needs
        subject = f"{service.name} in {self.gateways.name}"
        cause = "it is sent requests before the next one goes"
        return self._ask(subject, cause, _unready(service.name), _READY_S, needs)

    def _ask(
        self,
        subject: str,
        cause: str,
        missing: Callable[[Result], str | None],
        limit_s: float,
        needs: tuple[str, ...],
        *,
        at_most: bool = False,
    ) -> tuple[str, ...]:
        """The same of each gateway that runs."""
        keys: list[str] = []
        for one in self.answering:
            argv = http_page.page(f"{one.gateway.address}/metrics")
            ground = one.ground
            command = ground.head.found.access.of(inside(ground.wanted, one.name, *argv))
            wait = Wait(
                command=command.within(20),
                missing=missing,
                limit_s=limit_s,
                every_s=0.5,
                at_most=at_most,
            )
            keys.append(ground.add("await", subject, cause, wait, needs))
        return tuple(keys)


def _at_work(engine: str) -> Callable[[Result], str | None]:
    def missing(result: Result) -> str | None:
        state = gateway_page.instance(result, engine)
        if state is None:
            return "the gateway does not answer"
        if state.state not in ("draining", "drained", ""):
            return "the gateway has not heard of it yet"
        return f"{state.inflight} requests are at work" if state.inflight else None

    return missing


def _unready(engine: str) -> Callable[[Result], str | None]:
    def missing(result: Result) -> str | None:
        state = gateway_page.instance(result, engine)
        if state is None:
            return "the gateway does not answer"
        return None if state.ready else f"the gateway finds it {state.state or 'unknown'}"

    return missing


def order(turns: Sequence[Turn], running: Mapping[str, bool]) -> tuple[Turn, ...]:
    """Engines that serve nobody anyway go first: they cost nothing, and may not come up."""

    def serves(one: Turn) -> bool:
        return one.before is not None and running.get(one.before.service.name, False)

    return tuple(sorted(turns, key=serves))


def downtime(turns: Sequence[Turn], found: FoundServices, name: str) -> str:
    """What the turns cost those who ask meanwhile; nothing where somebody always serves."""
    if turns[0].before is None:
        return ""
    up = {one.name for one in engines_of(found, name) if _runs(found, one.name)}
    if len(up) != 1 or turns[-1].name not in up:
        return ""
    took = found.engines[turns[-1].name].took_s
    long = f", about {took:.0f} s by its last start" if took else ""
    return (
        f"{name} answers nothing from its end until its new engine has loaded{long}:"
        " no cards are free for the new one beside it"
    )


def _runs(found: FoundServices, engine: str) -> bool:
    state = found.engines.get(engine)
    return state is not None and state.state == "running"


def way_back(
    rolling: Callable[[Mapping[str, Service]], Rolling],
    known: Mapping[str, Service],
    turns: Sequence[Turn],
    attempted: Collection[str],
) -> Plan:
    """The turns that were begun, in reverse. `known`: what the gateway knew before all of them;
    `attempted`: the keys of the steps that were begun."""
    begun = [one for one in turns if _begun(one, attempted)]
    serving = dict(known)
    for one in begun:
        if one.after is not None:
            serving[one.name] = one.after.service
        else:
            serving.pop(one.name, None)
    writing = rolling(serving)
    needs: tuple[str, ...] = ()
    for one in turns:
        if one not in begun and one.before and _drained(one, attempted):
            needs = writing.take_back(one.before.service, needs)
    for one in reversed(begun):
        needs = writing.turn(Turn(before=one.after, after=one.before), "the version before", needs)
    return writing.ground.draft.finished()


def _begun(one: Turn, attempted: Collection[str]) -> bool:
    return any(
        key.endswith((f": write service {one.name}", f": remove service {one.name}"))
        for key in attempted
    )


def _drained(one: Turn, attempted: Collection[str]) -> bool:
    return any(f": drain {one.name} in " in key for key in attempted)
