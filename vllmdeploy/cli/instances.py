"""`instances`: several vLLM servers on one or more hosts, each on cards of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import end_with
from vllmdeploy.cli.context import World, world
from vllmdeploy.cli.engines import (
    CacheBytes,
    NoMps,
    ThreadPercentage,
    Utilization,
    carry_out,
    loaded_with,
    names,
    shares_of,
)
from vllmdeploy.cli.service import DryRun, EndingInFlags, MaxModelLen, MaxNumSeqs, Yes, invitation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmdeploy.config.settings import Settings
    from vllmdeploy.plan.instances_known import Known
    from vllmdeploy.workflows.instances import InstancesPlan
    from vllmdeploy.workflows.session import Session

app = typer.Typer(
    help="Several vLLM servers on one or more hosts, each on cards of its own.",
    no_args_is_help=True,
)
Name = Annotated[str, typer.Argument(help="The instances' common name.", metavar="NAME")]
AnyName = Annotated[str, typer.Argument(help="Default: all.", metavar="NAME")]
Numbers = Annotated[
    list[int] | None, typer.Option("--number", min=1, help="Only this one; may be repeated.")
]


@app.command(cls=EndingInFlags)
def start(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Model in MODEL_PATH: its name, repository id or path.")
    ],
    *,
    gpus_per_instance: Annotated[
        int | None, typer.Option("--gpus-per-instance", min=1, help="Cards of each.", metavar="K")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", min=1, help="Default: as many as there is room for.")
    ] = None,
    ports: Annotated[
        str | None, typer.Option("--ports", help="On every host, as 8001-8004 or 8001,8003.")
    ] = None,
    hosts: Annotated[
        str, typer.Option("--hosts", help="Hosts apart by commas. Default: all.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Default: the model's name.")] = "",
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="Another name they answer to.")
    ] = None,
    task: Annotated[str, typer.Option("--task", help="generate, embed or rerank.")] = "generate",
    profile: Annotated[
        str | None, typer.Option("--profile", help="Values for what is not set.")
    ] = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    gpu_memory_utilization: Utilization = None,
    per_card: Annotated[
        int | None, typer.Option("--per-card", min=1, help="Engines sharing a card by CUDA MPS.")
    ] = None,
    no_mps: NoMps = False,
    thread_percentage: ThreadPercentage = None,
    kv_cache_memory_bytes: CacheBytes = "",
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Start vLLM servers behind the gateway, each on its own cards; vLLM's flags follow after --.

    Example: vllmdeploy instances start Qwen3-30B-A3B-Instruct-2507 --gpus-per-instance 2 --count 4
    """
    from vllmdeploy.workflows import instances, instances_asked

    here = world(context)
    loaded = loaded_with(
        here,
        TENSOR_PARALLEL_SIZE=gpus_per_instance,
        VLLM_PORTS=ports,
        MAX_MODEL_LEN=max_model_len,
        MAX_NUM_SEQS=max_num_seqs,
        GPU_MEMORY_UTILIZATION=gpu_memory_utilization,
        WORKERS=per_card,
    )
    asked = instances_asked.asked_of(
        loaded.settings,
        model,
        profile_name=profile,
        count=count,
        hosts=names(hosts),
        shares=shares_of(no_mps, thread_percentage, kv_cache_memory_bytes),
        name=name,
        aliases=tuple(alias or ()),
        task=task,
        arguments=tuple(context.args),
    )
    if asked.from_profile:
        output.say(f"note: from profile {asked.profile}: {', '.join(asked.from_profile)}")

    def decide(session: Session) -> InstancesPlan:
        return instances.decide_start(session, asked.wanted)

    carry_out(here, loaded, decide, "instances start", dry_run=dry_run, yes=yes, invite=_invitation)


@app.command(cls=EndingInFlags)
def restart(
    context: typer.Context,
    name: Name,
    *,
    number: Numbers = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    gpu_memory_utilization: Utilization = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Start them anew one after another, with new settings if any are given: the others answer
    meanwhile. vLLM's flags after -- replace those they had.

    Example: vllmdeploy instances restart Qwen3-30B-A3B-Instruct-2507 --max-num-seqs 12
    """
    from vllmdeploy.workflows import instances

    here = world(context)
    loaded = loaded_with(here, GPU_MEMORY_UTILIZATION=gpu_memory_utilization)
    options: dict[str, Any] = {
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "gpu_memory_utilization": (
            loaded.settings.gpu_memory_utilization if gpu_memory_utilization else None
        ),
        "arguments": tuple(context.args) or None,
    }
    changes = {key: value for key, value in options.items() if value is not None}

    def decide(session: Session) -> InstancesPlan:
        return instances.decide_restart(session, name, number or (), changes)

    carry_out(here, loaded, decide, "instances restart", dry_run=dry_run, yes=yes)


@app.command()
def stop(
    context: typer.Context,
    name: Name,
    *,
    number: Numbers = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """No new requests, those at work end, then the instances do and their cards are free.

    Example: vllmdeploy instances stop Qwen3-30B-A3B-Instruct-2507 --number 4
    """
    from vllmdeploy.workflows import instances

    here = world(context)

    def decide(session: Session) -> InstancesPlan:
        return instances.decide_stop(session, name, number or ())

    carry_out(here, loaded_with(here), decide, "instances stop", dry_run=dry_run, yes=yes)


@app.command("list")
def list_(context: typer.Context) -> None:
    """Show all instances: where they are, on which cards, and how they are.

    Example: vllmdeploy instances list
    """
    from vllmdeploy.workflows.instances_check import listed

    here = world(context)
    with here.session(loaded_with(here)) as session:
        _show(here, listed(session))


@app.command()
def check(context: typer.Context, name: AnyName = "") -> None:
    """Ask each instance itself: its port, /health, /v1/models and one token.

    Example: vllmdeploy instances check
    """
    from vllmdeploy.errors import NotHealthy
    from vllmdeploy.workflows.instances_check import checked

    here = world(context)
    with here.session(loaded_with(here)) as session:
        found = checked(session, name)
    _show(here, found)
    failing = [one for one in found if not one.well]
    if failing:
        names = ", ".join(one.name for one in failing)
        hint = f"vllmdeploy instances logs {failing[0].of}"
        raise NotHealthy(f"{len(failing)} of {len(found)} do not answer: {names}", hint=hint)


@app.command()
def logs(
    context: typer.Context,
    name: Name,
    *,
    number: Numbers = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep showing.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, help="Lines of each.")] = 100,
) -> None:
    """Show the instances' logs, each line with its instance.

    Example: vllmdeploy instances logs Qwen3-30B-A3B-Instruct-2507 -f
    """
    from vllmdeploy.workflows.instances_check import show_logs

    here = world(context)
    with here.session(loaded_with(here)) as session:
        unread = show_logs(
            session, name, number or (), tail=tail, follow=follow, on_line=output.answer
        )
        end_with(list(unread))


def _show(here: World, found: Sequence[Known]) -> None:
    if here.json:
        output.document({"instances": [one.document() for one in found]})
    else:
        from vllmdeploy.cli.status_text import instances_text

        output.answer(instances_text(found))


def _invitation(settings: Settings, decided: InstancesPlan) -> str:
    return invitation(settings, decided.keys, decided.name, decided.address)
