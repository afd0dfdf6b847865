"""`rerank start|stop|status`: a rerank model on engines that share cards, behind the gateway."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vllmdeploy.config import profiles
from vllmdeploy.config.settings import Settings
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan import rerank
from vllmdeploy.plan.instances_decide import meant
from vllmdeploy.plan.instances_wanted import InstancesWanted, asked_of
from vllmdeploy.plan.rerank import RerankWanted
from vllmdeploy.plan.service import model_folder, service_name
from vllmdeploy.tools.manifest_names import name_of
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_model import FoundModel
from vllmdeploy.tools.vllm_services import Service
from vllmdeploy.workflows import instances, instances_asked
from vllmdeploy.workflows.instances import InstancesPlan
from vllmdeploy.workflows.instances_asked import USUAL, CardShares
from vllmdeploy.workflows.instances_check import listed
from vllmdeploy.workflows.instances_look import Looked, look
from vllmdeploy.workflows.session import Session

COMMAND = "rerank"


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankAsked:
    """`instances`: without what only the checkpoint and the image can say; `from_profile`: what
    nobody has set, worded as in config.env."""

    instances: InstancesWanted
    rerank: RerankWanted
    profile: str
    from_profile: tuple[str, ...] = ()


def asked_for(
    settings: Settings,
    *,
    model: str = "",
    model_size: str = "",
    profile_name: str | None = None,
    shares: CardShares = USUAL,
    hosts: tuple[str, ...] = (),
    **engine: Any,
) -> RerankAsked:
    """WORKERS engines, all of them on the same cards unless MPS is off."""
    if model and model_size:
        raise UsageError("--model and --model-size say the same: give one of them")
    profile = profiles.profile(COMMAND, profile_name)
    size = None if model else rerank.size_named(model_size or profile.model_size)
    name = model or (rerank.repository_of(size) if size else "")
    resolved = profiles.resolve(settings, profile)
    _sequences_fit(resolved)
    # The seed's way back: one process, whatever the number of workers says.
    workers = (resolved.workers or 1) if shares.allowed(resolved) else 1
    wanted = instances_asked.wanted_of(
        resolved,
        name,
        count=workers,
        per_card=workers,
        shares=shares,
        hosts=hosts,
        task="rerank",
        **engine,
    )
    return RerankAsked(
        instances=wanted,
        rerank=RerankWanted(
            model=name_of(name.rstrip("/")),
            size=size,
            workers=wanted.per_card,
            max_workers=resolved.max_workers,
            max_num_seqs=resolved.max_num_seqs,
            utilisation=resolved.gpu_memory_utilization,
        ),
        profile=profile.name,
        from_profile=instances_asked.from_profile(settings, profile),
    )


def _sequences_fit(settings: Settings) -> None:
    """A key that is set and one of the profile's may not go together."""
    tokens, sequences = settings.max_num_batched_tokens, settings.max_num_seqs
    if tokens and sequences and tokens < sequences:
        raise UsageError(
            f"MAX_NUM_BATCHED_TOKENS={tokens} is less than MAX_NUM_SEQS={sequences}",
            hint="a step holds at least one token of each sequence: raise one or lower the other",
        )


def decide_start(session: Session, asked: RerankAsked) -> InstancesPlan:
    engine = asked.instances.engine
    folder = model_folder(session.wanted, engine)
    hosts, name = asked.instances.hosts, service_name(engine)
    looked = look(session, model=folder, hosts=hosts, mps=True, of=name)
    _there(asked, looked)
    first = meant(asked.instances, looked.found)[0].name
    vllm = looked.found.vllm.get(first, Vllm())
    config = looked.found.models.get(first, FoundModel()).config
    special = rerank.engine_arguments(asked.rerank, config, vllm)
    given = replace(engine, arguments=(*special, *engine.arguments))
    decided = instances.decide_found(session, replace(asked.instances, engine=given), looked)
    remarks = tuple(rerank.notes(asked.rerank, vllm, _smallest_card(asked, looked)))
    return replace(decided, plan=replace(decided.plan, notes=(*decided.plan.notes, *remarks)))


def _there(asked: RerankAsked, looked: Looked) -> None:
    """A size means a model that can be fetched by its name."""
    lacking = [host for host, one in looked.found.models.items() if one.problem]
    if lacking and asked.rerank.size:
        repository = rerank.repository_of(asked.rerank.size)
        raise PreflightRefused(
            [f"{host}: {asked.rerank.model} is not in MODEL_PATH" for host in lacking],
            hint=f"bring it to every host with: vllmdeploy model download {repository} --sync",
        )


def _smallest_card(asked: RerankAsked, looked: Looked) -> int | None:
    members = meant(asked.instances, looked.found)
    sizes = [card.memory_total_mib for one in members for card in one.found.cards.cards]
    return min((size for size in sizes if size), default=None)


def decide_stop(session: Session, name: str) -> InstancesPlan:
    return instances.decide_stop(session, name or _only(session), ())


def _only(session: Session) -> str:
    names = sorted({one.belongs_to for one in _ranking(look(session).found.instances)})
    if len(names) == 1:
        return names[0]
    if not names:
        raise UsageError("there is no rerank service", hint="vllmdeploy rerank start makes one")
    raise UsageError("there are several rerank services", hint=f"name one of {', '.join(names)}")


def _ranking(services: Iterable[Service]) -> list[Service]:
    return [one for one in services if one.task == "rerank"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankStatus:
    """One rerank service, with the fields of its configuration."""

    name: str
    ready: int
    instances: int
    hosts: tuple[str, ...]
    cards: str
    per_card: int
    tensor_parallel_size: int
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    gpu_memory_utilization: float | None
    max_workers: int | None
    why: str = ""

    def document(self) -> dict[str, Any]:
        return asdict(self)


def statuses(session: Session) -> tuple[RerankStatus, ...]:
    looked = look(session)
    states = {one.name: one for one in listed(session, looked)}
    grouped: dict[str, list[Service]] = {}
    for one in _ranking(looked.found.instances):
        grouped.setdefault(one.belongs_to, []).append(one)
    return tuple(_status(name, of, states) for name, of in grouped.items())


def _status(name: str, of: Sequence[Service], states: dict[str, Any]) -> RerankStatus:
    asked = asked_of(of[0])
    engine = asked.engine
    seen = [states[one.name] for one in of]
    return RerankStatus(
        name=name,
        ready=sum(one.well for one in seen),
        instances=len(of),
        hosts=tuple(dict.fromkeys(one.head for one in of)),
        cards=" ".join(dict.fromkeys(one.cards for one in seen if one.cards)) or "-",
        per_card=asked.per_card,
        tensor_parallel_size=engine.tensor_parallel,
        max_num_seqs=engine.max_num_seqs,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_workers=rerank.rendering_threads(engine.arguments),
        why="; ".join(dict.fromkeys(one.why for one in seen if one.why)),
    )
