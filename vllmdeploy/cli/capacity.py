"""`capacity`: will a model fit, how long a context, how many users."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import world
from vllmdeploy.errors import UsageError

if TYPE_CHECKING:
    from vllmdeploy.plan.capacity import Assessment
    from vllmdeploy.plan.capacity_model import ModelShape
    from vllmdeploy.plan.capacity_search import Cards
    from vllmdeploy.plan.service_wanted import FoundServices
    from vllmdeploy.tools.safetensors import Weights

_GIB = 2**30
_LENGTHS = (2048, 8192, 32768, 131072)


def capacity(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder, NAME in MODEL_PATH, or OWNER/NAME.")],
    *,
    cards: Annotated[
        int | None, typer.Option(min=1, max=64, help="Cards on a host. Default: 1, or as seen.")
    ] = None,
    hosts: Annotated[
        int | None, typer.Option(min=1, max=64, help="Hosts with as many cards, likewise.")
    ] = None,
    memory: Annotated[
        float | None,
        typer.Option(
            min=1,
            max=4096,
            help="GiB of a card, as its tool states them. Without it the hosts are asked.",
        ),
    ] = None,
    group: Annotated[str, typer.Option("--group", help="Whose hosts to ask.")] = "",
    tp: Annotated[int | None, typer.Option(min=1, help="Tensor parallel size.")] = None,
    pp: Annotated[int | None, typer.Option(min=1, help="Pipeline parallel size.")] = None,
    length: Annotated[
        int | None, typer.Option("--len", min=1, help="Context. Default: the model's own.")
    ] = None,
    utilisation: Annotated[
        float, typer.Option(min=0.05, max=1, help="--gpu-memory-utilization.")
    ] = 0.92,
    fp8_cache: Annotated[bool, typer.Option("--fp8-cache", help="KV cache of one byte.")] = False,
    eager: Annotated[bool, typer.Option("--eager", help="Without CUDA graphs.")] = False,
    revision: Annotated[str, typer.Option(help="Revision, for a model on the hub.")] = "main",
) -> None:
    """Say before loading whether a model fits, from its config.json and its files' headers: on the
    cards of your hosts, or on cards that you describe.

    Example: vllmdeploy capacity /data/models/Qwen3-8B --cards 2 --memory 24
    """
    from vllmdeploy.plan.capacity import Wanted, assess
    from vllmdeploy.plan.capacity_search import suggested

    shape, weights = _found(context, model, revision)
    have, known = _cards(context, cards=cards, hosts=hosts, memory=memory, group=group)
    cards, hosts, card_mib = have.per_host, have.hosts, have.memory_mib
    across = tp is not None and tp > cards
    wanted = Wanted(
        tensor_parallel=tp or cards,
        pipeline_parallel=pp or (1 if across else hosts),
        utilisation=utilisation,
        length=length,
        cache_value_bytes=1 if fp8_cache else 2,
        eager=eager,
    )
    if wanted.tensor_parallel * wanted.pipeline_parallel > cards * hosts and (tp or pp):
        raise UsageError(
            f"--tp {wanted.tensor_parallel} x --pp {wanted.pipeline_parallel} needs "
            f"{wanted.tensor_parallel * wanted.pipeline_parallel} cards; "
            f"--cards {cards} x --hosts {hosts} are {cards * hosts}"
        )
    best = suggested(shape, weights, have, wanted)
    found = assess(shape, weights, card_mib, wanted) if tp or pp or best is None else best
    found = _measured(context, model, (shape, weights), found, known)
    if world(context).json:
        output.document(_document(model, shape, weights, found, best))
    else:
        output.answer(_text(model, shape, weights, found, best, memory=round(card_mib / 1024, 1)))


def _cards(
    context: typer.Context,
    *,
    cards: int | None,
    hosts: int | None,
    memory: float | None,
    group: str,
) -> tuple[Cards, FoundServices | None]:
    """As described, else as the hosts have them, with what engines said there before."""
    from vllmdeploy.plan.capacity_search import Cards

    if memory is not None:
        return Cards(per_host=cards or 1, memory_mib=int(memory * 1024), hosts=hosts or 1), None
    from vllmdeploy.workflows.capacity import group_on_hosts

    here = world(context)
    loaded = here.loaded()
    with here.session(loaded) as session:
        seen, known = group_on_hosts(session, group or session.lead.group)
    per_host, count = cards or seen.per_host, hosts or seen.hosts
    return Cards(per_host=per_host, memory_mib=seen.memory_mib, hosts=count), known


def _measured(
    context: typer.Context,
    model: str,
    files: tuple[ModelShape, Weights],
    found: Assessment,
    known: FoundServices | None,
) -> Assessment:
    """What an engine of the same kind said when it last started counts more than any sum."""
    if known is None:
        return found
    from vllmdeploy.plan.service_capacity import as_measured
    from vllmdeploy.workflows.service import asked_of

    wanted = found.wanted
    asked = asked_of(world(context).settings(), model, tensor_parallel=wanted.tensor_parallel)
    asked = replace(asked, max_model_len=wanted.length, gpu_memory_utilization=wanted.utilisation)
    division = (wanted.tensor_parallel, wanted.pipeline_parallel)
    seen = as_measured(asked, known, files, division)
    if seen is None:
        return found
    note = "counted with the cache that such an engine had when it last started here"
    return replace(seen, notes=(*seen.notes, note))


def _found(context: typer.Context, model: str, revision: str) -> tuple[ModelShape, Weights]:
    """A folder; else a model of MODEL_PATH on this machine or on the head; else a repository of
    the hub."""
    from vllmdeploy.effects.connect import is_this_machine
    from vllmdeploy.workflows.capacity import (
        is_repository,
        model_in,
        model_on_head,
        model_on_hub,
    )

    if Path(model).is_dir():
        return model_in(Path(model))
    here = world(context)
    settings = here.settings()
    local = Path(settings.model_path) / Path(model).name
    if local.is_dir():
        return model_in(local)
    if not is_repository(model):
        loaded = here.loaded()
        if "/" in model or is_this_machine(loaded.fleet.head):
            return model_in(Path(model))
        with here.head_session(loaded) as session:
            return model_on_head(session, model)
    from vllmdeploy.effects.hub_headers import USUAL_ENDPOINT, Repository

    token = settings.hf_token_file
    return model_on_hub(
        Repository(
            name=model,
            revision=revision,
            endpoint=settings.hf_endpoint or USUAL_ENDPOINT,
            token=Path(token).read_text(encoding="utf-8").strip() if token else "",
        )
    )


def _text(
    model: str,
    shape: ModelShape,
    weights: Weights,
    found: Assessment,
    best: Assessment | None,
    *,
    memory: float,
) -> str:
    wanted, need = found.wanted, found.need
    ranks = wanted.tensor_parallel * wanted.pipeline_parallel
    kept = f"{shape.latent} latent values" if shape.latent else f"{shape.kv_heads} KV heads"
    lines = [
        f"{Path(model).name}: {found.verdict.value}" + (f": {found.reason}" * bool(found.reason)),
        f"  model    {shape.kind or 'unknown kind'}, {len(shape.layers.kinds)} layers, {kept}, "
        f"{weights.total_bytes / _GIB:.2f} GiB of weights",
        f"  on       {ranks} card{'s' * (ranks > 1)} of {memory:g} GiB: "
        f"tensor parallel {wanted.tensor_parallel}, pipeline parallel {wanted.pipeline_parallel}",
        f"  a card   {need.weights / _GIB:.2f} GiB weights, {_span(_beside(found))} GiB beside "
        f"them, {_span((found.available_worst, found.available_usual))} GiB for the cache",
        f"  a token  {found.kv_bytes_per_token:,} bytes of cache on each card",
        *(_possible(shape, found) if found.longest else ()),
        *(f"  note     {note}" for note in found.notes),
    ]
    if best is not None and best is not found and best.wanted != found.wanted:
        lines.append(f"  better   {best.flags}")
    return "\n".join(lines)


def _possible(shape: ModelShape, found: Assessment) -> tuple[str, ...]:
    users = ", ".join(f"{count:.1f} of {size:,} tokens" for size, count in _users(found))
    return (
        f"  context  up to {found.longest:,} tokens of the model's {shape.longest:,}",
        *((f"  users    {users}",) if users else ()),
        f"  flags    {found.flags}",
    )


def _beside(found: Assessment) -> tuple[int, int]:
    return found.need.usual - found.need.weights, found.need.worst - found.need.weights


def _span(least_and_most: tuple[int, int]) -> str:
    return " to ".join(f"{value / _GIB:.1f}" for value in least_and_most)


def _users(found: Assessment) -> list[tuple[int, float]]:
    """How many requests at once, at usual lengths and at the wanted one, in the worst case."""
    if not found.longest or not found.users:
        return []
    lengths = sorted({size for size in (*_LENGTHS, found.length) if size <= found.longest})
    return [(size, found.cache.concurrency(found.available_worst, size)) for size in lengths]


def _document(
    model: str, shape: ModelShape, weights: Weights, found: Assessment, best: Assessment | None
) -> dict[str, Any]:
    return {
        "model": model,
        "verdict": found.verdict.value,
        "reason": found.reason,
        "exact": found.exact,
        "tensor_parallel": found.wanted.tensor_parallel,
        "pipeline_parallel": found.wanted.pipeline_parallel,
        "weights_bytes": weights.total_bytes,
        "weights_bytes_by_dtype": dict(weights.bytes_by_dtype),
        "weights_bytes_per_rank": found.need.weights,
        "available_kv_bytes": {"usual": found.available_usual, "worst": found.available_worst},
        "kv_bytes_per_token": found.kv_bytes_per_token,
        "max_model_len": found.longest,
        "model_max_model_len": shape.longest,
        "users": [{"length": size, "users": round(count, 2)} for size, count in _users(found)],
        "flags": found.flags if found.longest else None,
        "suggested": None if best is None else best.flags,
        "notes": list(found.notes),
    }
