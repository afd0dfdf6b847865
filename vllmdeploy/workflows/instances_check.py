"""`instances list`, `check`, `logs`: how instances are, by their wardens' word and by their own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from vllmdeploy.core.command import check as succeeded
from vllmdeploy.core.reading import fields, json_object, strings
from vllmdeploy.effects.fanout import each
from vllmdeploy.errors import VllmdeployError, last_line
from vllmdeploy.plan.instances_known import Known, brings_back, known
from vllmdeploy.plan.instances_wanted import FoundInstances, node_name
from vllmdeploy.tools.vllm_engine import canary
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.workflows.instances import chosen
from vllmdeploy.workflows.instances_look import Looked, look
from vllmdeploy.workflows.session import Session

_FOREVER_S = 365 * 86400.0
_CHECK_S = 60.0


def listed(session: Session, looked: Looked | None = None) -> tuple[Known, ...]:
    looked = looked or look(session)
    return tuple(_known(looked.found, one) for one in looked.found.instances)


def checked(session: Session, name: str) -> tuple[Known, ...]:
    """Every instance of a name, or of all, asked on its own host."""
    looked = look(session)
    there = chosen(looked.found, name, ()) if name else looked.found.instances
    answers = each(there, lambda one: _ask(session, looked, one), at_once=max(1, len(there)))
    found: list[Known] = []
    for one, answer in zip(there, answers, strict=True):
        if isinstance(answer, VllmdeployError):
            plain = _known(looked.found, one)
            answer = replace(plain, state="not asked", why=answer.message)
        found.append(answer)
    return tuple(found)


def _known(found: FoundInstances, one: Service) -> Known:
    state = found.engines.get(one.name)
    if state is None:
        return known(one, "absent", f"its node is not up; {brings_back(one)}")
    return known(one, state.state, state.reason or state.problem)


def _ask(session: Session, looked: Looked, one: Service) -> Known:
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
