"""What a model needs, from a folder of this machine or from a hub, for the planner."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from vllmdeploy.errors import UsageError
from vllmdeploy.plan.capacity_model import ModelShape, parse_config
from vllmdeploy.tools import safetensors

if TYPE_CHECKING:
    from vllmdeploy.effects.hub_headers import Repository
    from vllmdeploy.plan.capacity_search import Cards
    from vllmdeploy.plan.service_wanted import FoundServices
    from vllmdeploy.workflows.session import Session

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_LARGEST_CONFIG = 10_000_000


def model_in(folder: Path) -> tuple[ModelShape, safetensors.Weights]:
    """Its shape and its tensors' sizes; no weight is read."""
    config = folder / "config.json"
    try:
        if config.stat().st_size > _LARGEST_CONFIG:
            raise UsageError(f"{config}: larger than any config.json")
        text = config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"{config}: {reason}", hint="capacity needs a folder with config.json and the weights"
        ) from error
    return parse_config(text, where=str(config)), safetensors.of_folder(folder)


def is_repository(name: str) -> bool:
    """Whether this can only be meant as OWNER/NAME on a hub."""
    return bool(_REPOSITORY.fullmatch(name)) and not Path(name).exists()


def model_on_hub(repository: Repository) -> tuple[ModelShape, safetensors.Weights]:
    """The same from a hub: no weight is downloaded."""
    from vllmdeploy.effects.hub_headers import model_on

    text, weights = model_on(repository)
    return parse_config(text, where=repository.url("config.json")), weights


def model_on_head(session: Session, name: str) -> tuple[ModelShape, safetensors.Weights]:
    """The same from MODEL_PATH on the head; only headers of its weights are read there."""
    from vllmdeploy.effects.ask import ask, ask_one
    from vllmdeploy.plan.observed import FoundHost
    from vllmdeploy.plan.service_stored import asking_weights
    from vllmdeploy.tools.model_weights import weights, weights_argv
    from vllmdeploy.tools.vllm_model import folder

    lead, path = session.lead.name, f"{session.settings.model_path}/{name}"
    session.need_all()
    found = session.look(for_plan=False, cards=False)[lead]
    if not isinstance(found, FoundHost):
        raise found
    model = ask_one(session.shells[lead], folder(path), found.access)
    if model.problem:
        raise UsageError(
            f"{lead}: {path}: {model.problem}",
            hint="`vllmdeploy model download` brings one; a folder of this machine and OWNER/NAME"
            " on a hub are taken too",
        )
    command = asking_weights(session.wanted, found, path, *weights_argv(path))
    (sizes,) = ask(session.shells[lead], [weights(command)], found.access) if command else (None,)
    if sizes is None:
        raise UsageError(
            f"{lead}: nobody can say how large the tensors in {path} are",
            hint=f"the image that is asked is {found.image_name or 'not set'}",
        )
    return parse_config(model.config, where=f"{lead}:{path}/config.json"), sizes


def group_on_hosts(session: Session, group: str) -> tuple[Cards, FoundServices]:
    """The cards that services of a group may have, and what its engines said before."""
    from vllmdeploy.effects.ask import ask_one
    from vllmdeploy.errors import PreflightRefused
    from vllmdeploy.plan.service_capacity import cards_of
    from vllmdeploy.plan.service_wanted import FoundServices
    from vllmdeploy.tools.vllm_measured import measured
    from vllmdeploy.workflows import cluster

    groups = cluster.decide_groups(session, session.look_at_all())
    if group not in groups:
        raise UsageError(f"there is no group {group}", hint=f"there are: {', '.join(groups)}")
    members = groups[group].members
    if not members:
        raise PreflightRefused(groups[group].refusals)
    cards = cards_of(members)
    if cards is None:
        raise UsageError(
            f"no memory of cards is known in group {group}",
            hint="--memory GIB and --cards N say what to count with; on processors"
            " VLLM_CPU_KVCACHE_SPACE in EXTRA_ENV decides",
        )
    head = members[0]
    fact = measured(head.layout.measured)
    said = ask_one(session.shells[head.name], fact, head.found.access)
    return cards, FoundServices(members=members, measured=said)
