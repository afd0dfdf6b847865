"""The steps by which a service starts, is replaced, and ends, on its group's head."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.plan import Action, Draft, Run, Step, Wait
from vllmdeploy.errors import NotHealthy
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.preflight import node_name
from vllmdeploy.plan.service_ranks import files_elsewhere
from vllmdeploy.plan.service_wanted import FoundServices, inside
from vllmdeploy.plan.supervise import Supervisor
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import files, http_page
from vllmdeploy.tools.vllm_engine import (
    START_LIMIT_S,
    EngineState,
    parse_engine,
    parse_engines,
)
from vllmdeploy.tools.vllm_measured import Conditions, keep
from vllmdeploy.tools.vllm_services import Service

_USAGE_STATUS = 2  # what an argument parser ends with
_FAILURES_SHOWN = 2
_FRAME = re.compile(r'File "|\braise ')
RETRY = "retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Where the steps of services are written: a draft, a head, and how its node is asked.
    `instance`: the node of its own by which an engine runs outside Ray, on the host `head`.
    `members`: the hosts of a group without Ray, each of which may run ranks."""

    draft: Draft
    wanted: Wanted
    supervisor: Supervisor
    head: Member
    instance: str = ""
    members: tuple[Member, ...] = ()

    def reaches(self, host: str) -> bool:
        """A host that is dead, or that no list names any more, is not of its group now."""
        return any(one.name == host for one in (self.head, *self.members))

    def at(self, host: str) -> Ground:
        """The same on another host of its group."""
        there = next((one for one in self.members if one.name == host), self.head)
        return replace(self, head=there)

    @property
    def node(self) -> str:
        return self.instance or node_name(self.wanted, self.head.found)

    @property
    def noun(self) -> str:
        return "instance" if self.instance else "service"

    @property
    def package(self) -> str:
        """That of the node as it runs now; a new one has ours."""
        ours = self.head.found.ours(self.wanted.cluster)
        return next((one.package for one in ours if one.name == self.node), self.wanted.package)

    @property
    def package_is_ours(self) -> bool:
        """What runs there knows all that we may ask."""
        return self.package == self.wanted.package

    def add(
        self,
        verb: str,
        subject: str,
        cause: str,
        action: Action,
        needs: tuple[str, ...] = (),
        *,
        destructive: bool = False,
        hint: str = "",
    ) -> str:
        return self.draft.add(
            Step(
                host=self.head.name,
                verb=verb,
                subject=subject,
                cause=cause,
                action=action,
                needs=needs,
                destructive=destructive,
                hint=hint,
            )
        )

    def run(self, command: Command) -> Run:
        return Run(self.head.found.access.of(command))

    def inside(self, *argv: str) -> Command:
        return self.head.found.access.of(inside(self.wanted, self.node, *argv))

    def ctl(self, *argv: str) -> Command:
        layout = self.head.layout
        asked = self.supervisor.ctl(self.node, layout, self.package, *argv)
        return self.head.found.access.of(asked)


def write(
    ground: Ground, name: str, content: bytes, cause: str, needs: tuple[str, ...] = ()
) -> str:
    """Where it has ranks on other hosts than the head, their files are written first."""
    ranks = tuple(
        _write(ground.at(host), name, piece, cause, needs)
        for host, piece in files_elsewhere(content, ground.head.name).items()
        if ground.reaches(host)
    )
    return _write(ground, name, content, cause, (*needs, *ranks))


def remember(
    ground: Ground, service: Service, conditions: Conditions | None, needs: tuple[str, ...]
) -> None:
    """What the engine said of its cache, for the next plan. Only the head's own log is read."""
    if conditions is None or service.leader != ground.head.name:
        return
    layout = ground.head.layout
    log = f"{layout.logs(ground.node)}/{service.name}.log"
    command = keep(log, layout.measured, conditions)
    cause = "the next plan counts with what was measured"
    ground.add("keep", f"cache size of {service.name}", cause, ground.run(command), needs)


def _write(ground: Ground, name: str, content: bytes, cause: str, needs: tuple[str, ...]) -> str:
    command = files.write_open(f"{ground.head.layout.services}/{name}.json", content)
    return ground.add("write", f"service {name}", cause, ground.run(command), needs)


def restore_ranks(
    ground: Ground, name: str, content: bytes, there: Mapping[str, Mapping[str, str]]
) -> tuple[str, ...]:
    """The files of a stored service on other hosts than the head, where they are not as they
    should be. `there`: digests of what is in each host's services folder."""
    file = f"{name}.json"
    return tuple(
        _write(ground.at(host), name, piece, "its rank's file is not as stored", ())
        for host, piece in files_elsewhere(content, ground.head.name).items()
        if ground.reaches(host) and there.get(host, {}).get(file) != files.digest(piece)
    )


def remove_strays(ground: Ground, found: FoundServices) -> None:
    """Files of ranks on hosts where their service has none any more, as when a spare was there."""
    wanted: dict[str, set[str]] = {}
    for name, one in found.stored.items():
        for host in files_elsewhere(one.content, ground.head.name) if one.service else ():
            wanted.setdefault(host, set()).add(f"{name}.json")
    for host, there in found.elsewhere.items():
        for file in sorted(there.keys() - wanted.get(host, set())):
            at = ground.at(host)
            command = files.remove(f"{at.head.layout.services}/{file}")
            subject = f"service {file.removesuffix('.json')}"
            at.add("remove", subject, "no rank of it is here any more", at.run(command))


def await_answer(
    ground: Ground, service: Service, cause: str, needs: tuple[str, ...], *, fresh: bool
) -> str:
    """Its engine is healthy and has generated a token. `fresh`: what it did before counts not."""
    ground = ground.at(service.leader)
    child = ground.instance or service.name
    subject = f"{ground.noun} {service.name}"
    hint = _look_at(ground, service)
    hopeless = _not_running(f"{ground.head.name}: {subject}", child, hint)
    wait = Wait(
        command=ground.ctl("status"),
        patient=ground.ctl("status", "--until-runs", child) if ground.package_is_ours else None,
        missing=_of_this_one(service, child, hopeless if fresh else _not_running_yet(child)),
        limit_s=START_LIMIT_S,
        explain=((ground.head.name, ground.ctl("logs", child, "--tail", "12")),),
    )
    return ground.add("await", subject, cause, wait, needs, hint=hint)


def _look_at(ground: Ground, service: Service) -> str:
    if ground.instance:
        return f"vllmdeploy instances logs {service.belongs_to}"
    return f"vllmdeploy logs {ground.head.name}"


def _of_this_one(
    service: Service, child: str, missing: Callable[[Result], str | None]
) -> Callable[[Result], str | None]:
    """What the engine before it does or did says nothing; wardens of old packages do not tell."""

    def still_missing(result: Result) -> str | None:
        state = parse_engine(result, child)
        if state.generation and state.generation != str(service.generation):
            return f"generation {state.generation} is {state.words}"
        return missing(result)

    return still_missing


def _not_running(subject: str, child: str, hint: str) -> Callable[[Result], str | None]:
    """What it still lacks; an engine that cannot come up is given up at once, with its words."""

    def missing(result: Result) -> str | None:
        state = parse_engine(result, child)
        if state.state == "running":
            return None
        hopeless = state.exit_code == _USAGE_STATUS or state.failures >= _FAILURES_SHOWN
        if state.state == "crash-loop" or (state.failures and hopeless):
            raise NotHealthy(
                f"{subject} does not start: {state.failure or state.reason}{_words(state)}",
                hint=hint,
            )
        return state.words

    return missing


def _not_running_yet(name: str) -> Callable[[Result], str | None]:
    def missing(result: Result) -> str | None:
        state = parse_engine(result, name)
        return None if state.state == "running" else state.words

    return missing


def _words(state: EngineState) -> str:
    """The lines that say why, the first one before all; a traceback's frames and the ranks' echoes
    do not."""
    lines = [line.rstrip() for line in state.last_lines if line.strip()]
    telling = [line for line in lines if "rror" in line and not _FRAME.search(line)]
    shown = telling or lines[-4:]
    return "".join(f"\n    {line}" for line in shown[:1] + shown[1:][-3:])


def retry(ground: Ground, services: Sequence[str], needs: tuple[str, ...] = ()) -> str:
    """The warden gave them up, which it does for good; the reason may be gone by now."""
    cause = f"given up: {', '.join(services)}"
    return ground.add(RETRY, "services", cause, Run(ground.ctl("retry")), needs)


def drain(ground: Ground, service: Service, needs: tuple[str, ...]) -> str:
    """Until it works on nothing any more, at most as long as the settings say: what is left then
    gets as long again from the engine itself. One that does not answer has nothing to lose."""
    ground = ground.at(service.leader)
    wait = Wait(
        command=ground.inside(*http_page.page(f"{service.url}/metrics")),
        missing=_still_at_work,
        limit_s=ground.wanted.drain_s,
        at_most=True,
    )
    return ground.add(
        "drain", f"{ground.noun} {service.name}", "no request is cut off", wait, needs
    )


def _still_at_work(result: Result) -> str | None:
    if not result.ok:
        return None
    running = sum(
        float(line.rpartition(" ")[2])
        for line in result.stdout.splitlines()
        if line.startswith(("vllm:num_requests_running{", "vllm:num_requests_waiting{"))
    )
    return f"{running:g} requests are at work" if running else None


def remove(
    ground: Ground,
    name: str,
    cause: str,
    needs: tuple[str, ...] = (),
    *,
    ranks: Iterable[str] = (),
) -> tuple[str, ...]:
    """The file goes, and the warden ends the engine; the last steps are done when it has. Its ranks
    on other hosts than the head end after the one there, which may lead them."""
    ended = (_remove(ground, name, cause, needs),)
    elsewhere = [host for host in ranks if host != ground.head.name and ground.reaches(host)]
    return tuple(_remove(ground.at(host), name, cause, ended) for host in elsewhere) or ended


def _remove(ground: Ground, name: str, cause: str, needs: tuple[str, ...]) -> str:
    command = files.remove(f"{ground.head.layout.services}/{name}.json")
    gone = ground.add(
        "remove", f"service {name}", cause, ground.run(command), needs, destructive=True
    )

    def missing(result: Result) -> str | None:
        engines = parse_engines(result)
        if "" in engines or name not in engines:
            return None
        return engines[name].words

    wait = Wait(command=ground.ctl("status"), missing=missing, limit_s=ground.wanted.drain_s + 60.0)
    return ground.add("await", f"end of {name}", "nothing of it runs then", wait, (gone,))
