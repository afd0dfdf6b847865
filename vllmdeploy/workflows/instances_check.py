"""`instances list`, `check`, `logs`: how instances are, by their wardens' word and by their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vllmdeploy.core.command import check as succeeded
from vllmdeploy.core.reading import fields, json_object, strings
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import VllmdeployError, last_line
from vllmdeploy.plan.instances_wanted import FoundInstances, node_name, slot_of
from vllmdeploy.tools.vllm_engine import EngineState, canary
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.workflows.instances import chosen
from vllmdeploy.workflows.instances_look import Looked, look
from vllmdeploy.workflows.session import Session

_FOREVER_S = 365 * 86400.0
_CHECK_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """One line of `list` or `check`."""

    name: str
    of: str
    host: str
    cards: str
    address: str
    state: str
    why: str = ""

    @property
    def well(self) -> bool:
        return self.state in ("running", "answers")

    def document(self) -> dict[str, Any]:
        return asdict(self)


def listed(session: Session, looked: Looked | None = None) -> tuple[Checked, ...]:
    looked = looked or look(session)
    return tuple(_known(looked.found, one) for one in looked.found.instances)


def checked(session: Session, name: str) -> tuple[Checked, ...]:
    """Every instance of a name, or of all, asked on its own host."""
    looked = look(session)
    there = chosen(looked.found, name, ()) if name else looked.found.instances
    answers = each(there, lambda one: _ask(session, looked, one), at_once=max(1, len(there)))
    found: list[Checked] = []
    for one, answer in zip(there, answers, strict=True):
        if isinstance(answer, VllmdeployError):
            plain = _known(looked.found, one)
            answer = replace(plain, state="not asked", why=answer.message)
        found.append(answer)
    return tuple(found)


def _known(found: FoundInstances, one: Service) -> Checked:
    state = found.engines.get(one.name) or EngineState(state="absent", reason="its node is not up")
    return Checked(
        name=one.name,
        of=one.belongs_to,
        host=one.head,
        cards=",".join(map(str, slot_of(one).cards)),
        address=one.url,
        state=state.state or "unknown",
        why=state.reason or state.problem,
    )


def _ask(session: Session, looked: Looked, one: Service) -> Checked:
    """Its warden's folder knows where it is; its answers come from the engine itself."""
    plain = _known(looked.found, one)
    member = looked.found.member(one.head)
    node = next(
        (
            node
            for node in member.found.ours(session.wanted.cluster)
            if node.name == node_name(session.wanted.cluster, one.name) and node.running
        ),
        None,
    )
    if node is None:
        return plain
    route, body = canary(one.task, one.names[0])
    question = ("check", one.url, route, json.dumps(body))
    asked = session.supervisor.ctl(node.name, member.layout, node.package, *question)
    command = member.found.access.of(asked.within(_CHECK_S))
    result = session.shells[one.head].run(command)
    said = json_object(result.stdout)
    if said is None:
        return replace(plain, state="not asked", why=last_line(result.output))
    wrong = strings(fields(said).get("wrong"))
    models = [str(model) for model in said.get("models", ())]
    if not wrong and one.names[0] not in models:
        wrong = {"/v1/models": f"lists {', '.join(models) or 'nothing'}, not {one.names[0]}"}
    why = "; ".join(f"{what}: {words}" for what, words in wrong.items())
    return replace(plain, state="fails" if wrong else "answers", why=why or plain.why)


def show_logs(
    session: Session,
    name: str,
    numbers: Sequence[int],
    *,
    tail: int,
    follow: bool,
    on_line: Callable[[str], None],
) -> tuple[VllmdeployError, ...]:
    """Why some instances' logs could not be shown to their end."""
    looked = look(session)
    there = chosen(looked.found, name, numbers)
    width = max(len(one.name) for one in there)

    def show(one: Service) -> None:
        member = looked.found.member(one.head)
        node = node_name(session.wanted.cluster, one.name)
        command = session.supervisor.logs(node, member.layout, tail=tail, follow=follow)
        bounded = member.found.access.of(command.within(_FOREVER_S if follow else 60))
        prefix = f"{one.name.ljust(width)} | "
        shell = session.shells[one.head]
        result = shell.run(bounded, on_line=lambda line: on_line(prefix + line.rstrip("\n")))
        succeeded(one.head, bounded, result, doing=f"reading the logs of {one.name}")

    answers = each(there, show, at_once=len(there))
    return tuple(answer for answer in answers if isinstance(answer, VllmdeployError))
