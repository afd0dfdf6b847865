"""`rerank start|stop|status`: the rerank service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import world
from vllmdeploy.cli.engines import (
    CacheBytes,
    NoMps,
    ThreadPercentage,
    carry_out,
    loaded_with,
    names,
    shares_of,
)
from vllmdeploy.cli.service import DryRun, EndingInFlags, Yes, invitation

if TYPE_CHECKING:
    from vllmdeploy.config.settings import Settings
    from vllmdeploy.workflows.instances import InstancesPlan
    from vllmdeploy.workflows.session import Session

app = typer.Typer(
    help="The rerank service: a cross-encoder or embedding model behind the gateway.",
    no_args_is_help=True,
)

_HEADINGS = ("NAME", "READY", "HOSTS", "CARDS", "TP", "SEQUENCES", "UTILISATION", "WORKERS", "WHY")


@app.command(cls=EndingInFlags)
def start(
    context: typer.Context,
    *,
    model_size: Annotated[
        str, typer.Option("--model-size", help="Qwen3-Reranker of 0.6B, 4B or 8B.")
    ] = "",
    model: Annotated[
        str, typer.Option("--model", help="Another model in MODEL_PATH: cross-encoder, embedding.")
    ] = "",
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="production (default), low-resource or multi-gpu."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Engines, sharing cards by MPS.")
    ] = None,
    max_num_seqs: Annotated[int | None, typer.Option("--max-num-seqs", min=1)] = None,
    max_num_batched_tokens: Annotated[
        int | None, typer.Option("--max-num-batched-tokens", min=1)
    ] = None,
    gpu_memory_utilization: Annotated[
        str | None,
        typer.Option("--gpu-memory-utilization", help="Of a card, for all its engines."),
    ] = None,
    max_workers: Annotated[
        int | None, typer.Option("--max-workers", min=1, help="Rendering threads of an engine.")
    ] = None,
    tensor_parallel_size: Annotated[
        int | None, typer.Option("--tensor-parallel-size", min=1, help="Cards of one engine.")
    ] = None,
    no_mps: NoMps = False,
    thread_percentage: ThreadPercentage = None,
    kv_cache_memory_bytes: CacheBytes = "",
    hosts: Annotated[str, typer.Option("--hosts", help="Names, with commas. Default: all.")] = "",
    name: Annotated[str, typer.Option("--name", help="Default: the model's name.")] = "",
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="Another name it answers to.")
    ] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Serve /rerank, /v1/rerank, /v2/rerank and /score; vLLM's own flags follow after --.

    Example: vllmdeploy rerank start --model-size 4B --profile production
    """
    from vllmdeploy.workflows import rerank

    here = world(context)
    loaded = loaded_with(
        here,
        WORKERS=workers,
        MAX_NUM_SEQS=max_num_seqs,
        MAX_NUM_BATCHED_TOKENS=max_num_batched_tokens,
        GPU_MEMORY_UTILIZATION=gpu_memory_utilization,
        MAX_WORKERS=max_workers,
        TENSOR_PARALLEL_SIZE=tensor_parallel_size,
    )
    asked = rerank.asked_for(
        loaded.settings,
        model=model,
        model_size=model_size,
        profile_name=profile,
        shares=shares_of(no_mps, thread_percentage, kv_cache_memory_bytes),
        hosts=names(hosts),
        name=name,
        aliases=tuple(alias or ()),
        arguments=tuple(context.args),
    )
    if asked.from_profile:
        output.say(f"note: from profile {asked.profile}: {', '.join(asked.from_profile)}")

    def decide(session: Session) -> InstancesPlan:
        return rerank.decide_start(session, asked)

    carry_out(here, loaded, decide, "rerank start", dry_run=dry_run, yes=yes, invite=_invitation)


def _invitation(settings: Settings, decided: InstancesPlan) -> str:
    """As that of a generating model, with what is asked of this one."""
    documents = ["Bananas are yellow.", "Paris is the capital of France."]
    return invitation(
        settings,
        decided.keys,
        decided.name,
        decided.address,
        route="/rerank",
        asking={"query": "What is the capital of France?", "documents": documents},
    )


@app.command()
def stop(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Default: the only rerank service.", metavar="NAME")
    ] = "",
    *,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Stop a rerank service: no new requests, those at work end, then its cards are free.

    Example: vllmdeploy rerank stop
    """
    from vllmdeploy.workflows import rerank

    here = world(context)

    def decide(session: Session) -> InstancesPlan:
        return rerank.decide_stop(session, name)

    carry_out(here, loaded_with(here), decide, "rerank stop", dry_run=dry_run, yes=yes)


@app.command()
def status(context: typer.Context) -> None:
    """Show rerank services: engines that are ready, cards, and their configuration.

    Example: vllmdeploy rerank status
    """
    from vllmdeploy.workflows import rerank

    here = world(context)
    with here.session(loaded_with(here)) as session:
        found = rerank.statuses(session)
    if here.json:
        output.document({"rerank": [one.document() for one in found]})
        return
    rows = [
        (
            one.name,
            f"{one.ready} of {one.instances}",
            ",".join(one.hosts),
            one.cards,
            str(one.tensor_parallel_size),
            str(one.max_num_seqs or "-"),
            str(one.gpu_memory_utilization or "-"),
            str(one.max_workers or "-"),
            one.why,
        )
        for one in found
    ]
    output.answer(output.table(_HEADINGS, rows))
