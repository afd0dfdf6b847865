"""What `up` asks before it starts stored services again: whether they still have room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.ask import ask
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan import service_stored
from vllmdeploy.plan.service_wanted import FoundServices
from vllmdeploy.tools.model_weights import weights, weights_argv
from vllmdeploy.tools.safetensors import Weights
from vllmdeploy.tools.vllm_measured import measured
from vllmdeploy.tools.vllm_model import FoundModel, folder
from vllmdeploy.workflows.session import Session

_HINT = (
    "`vllmdeploy stop-service NAME` takes it out of the way: then `up`, and `start-service` with"
    " what has room"
)


def refuse_what_has_no_room(session: Session, groups: Mapping[str, FoundServices]) -> None:
    """All groups' reasons at once, as `start-service` would have said them."""
    against = [reason for found in groups.values() for reason in _against(session, found)]
    if against:
        raise PreflightRefused(against, hint=_HINT)


def _against(session: Session, found: FoundServices) -> tuple[str, ...]:
    waiting = service_stored.to_consider(found)
    if not waiting:
        return ()
    head, wanted = found.head, session.wanted
    folders = tuple(dict.fromkeys(service_stored.folder_of(wanted, one) for one in waiting))
    facts: list[Fact[Any]] = [measured(head.layout.measured), *map(folder, folders)]
    sized: list[str] = []
    for path in folders:
        command = service_stored.asking_weights(wanted, head.found, path, *weights_argv(path))
        if command is not None:
            facts.append(weights(command))
            sized.append(path)
    before, *rest = ask(session.shells[head.name], facts, head.found.access)
    models: dict[str, FoundModel] = dict(zip(folders, rest, strict=False))
    sizes: dict[str, Weights | None] = dict(zip(sized, rest[len(folders) :], strict=True))
    known = replace(found, measured=before)
    return tuple(service_stored.reasons(wanted, known, models, sizes))
