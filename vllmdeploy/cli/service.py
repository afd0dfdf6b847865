"""`start-service`, `stop-service`, `restart-service`, `generate`: the Ray-backed vLLM API."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from vllmdeploy.cli import model_sync, output
from vllmdeploy.cli.carry import conclude, show_plan, shown_once
from vllmdeploy.cli.context import World, world
from vllmdeploy.core.host import DEFAULT_GROUP

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vllmdeploy.config.settings import Settings
    from vllmdeploy.workflows.service import ServicePlan
    from vllmdeploy.workflows.service_keys import Keys
    from vllmdeploy.workflows.session import Session

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show every command and its cause; run none.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Name = Annotated[str, typer.Argument(help="The service.", metavar="NAME")]
MaxModelLen = Annotated[
    int | None, typer.Option("--max-model-len", min=1, help="Longest context in tokens.")
]
MaxNumSeqs = Annotated[
    int | None, typer.Option("--max-num-seqs", min=1, help="Sequences worked on at once.")
]
Quantization = Annotated[
    str | None, typer.Option("--quantization", help="none, int8, int4, or a method of vLLM.")
]


class EndingInFlags(TyperCommand):
    """What follows `--` is vLLM's: never taken for an argument of ours that was left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        left = super().parse_args(ctx, args[:at])
        ctx.args = [*ctx.args, *args[at + 1 :]]
        return left


def mount(app: typer.Typer) -> None:
    app.command("start-service", cls=EndingInFlags)(start_service)
    app.command("restart-service", cls=EndingInFlags)(restart_service)
    app.command("stop-service")(stop_service)
    app.command()(generate)


def start_service(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Model in MODEL_PATH: its name, repository id or path.")
    ],
    tensor_parallel: Annotated[
        int | None,
        typer.Argument(min=0, help="Cards to spread it over; 0 is all of them.", metavar="TP"),
    ] = None,
    *,
    pp: Annotated[int, typer.Option("--pp", min=1, help="Pipeline stages.")] = 1,
    name: Annotated[str, typer.Option("--name", help="Default: the model's name.")] = "",
    alias: Annotated[
        list[str] | None, typer.Option("--alias", help="Another name it answers to.")
    ] = None,
    task: Annotated[str, typer.Option("--task", help="generate, embed or rerank.")] = "generate",
    group: Annotated[str, typer.Option("--group", help="Group of hosts.")] = "",
    replicas: Annotated[
        int, typer.Option("--replicas", min=1, help="Engines of it, each on TP x PP cards.")
    ] = 1,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    quantization: Quantization = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Serve a model on the Ray cluster, behind the gateway; vLLM's own flags follow after --.

    Example: vllmdeploy start-service Llama-3-8B-instruct 8 -- --enable-prefix-caching
    """
    from vllmdeploy.workflows import service

    given: dict[str, Any] = {
        "pipeline_parallel": pp,
        "name": name,
        "aliases": tuple(alias or ()),
        "task": service.checked_task(task),
        "replicas": replicas,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "quantization": quantization,
        "arguments": tuple(context.args),
    }

    def decide(session: Session) -> ServicePlan:
        settings = session.settings
        asked = service.asked_of(settings, model, tensor_parallel=tensor_parallel, **given)
        home = group or session.lead.group or DEFAULT_GROUP
        return service.decide_start(session, asked, home)

    _carry_out(world(context), decide, "start-service", dry_run=dry_run, yes=yes, invite=True)


def restart_service(
    context: typer.Context,
    name: Name,
    *,
    replicas: Annotated[
        int | None, typer.Option("--replicas", min=1, help="Engines from now on.")
    ] = None,
    max_model_len: MaxModelLen = None,
    max_num_seqs: MaxNumSeqs = None,
    quantization: Quantization = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Start a service anew, with new settings if any are given; vLLM's flags after -- replace
    those it had. Engines take turns, and no request is lost, where there are several or free
    cards for one more; otherwise the downtime is said first. If a new one fails, the old one stays.

    Example: vllmdeploy restart-service Llama-3-8B-instruct --max-model-len 8192
    """
    from vllmdeploy.workflows.service_change import decide_restart

    options = {
        "replicas": replicas,
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "quantization": quantization,
        "arguments": tuple(context.args) or None,
    }
    changes = {key: value for key, value in options.items() if value is not None}

    def decide(session: Session) -> ServicePlan:
        return decide_restart(session, name, changes)

    _carry_out(world(context), decide, "restart-service", dry_run=dry_run, yes=yes, invite=True)


def stop_service(
    context: typer.Context, name: Name, *, dry_run: DryRun = False, yes: Yes = False
) -> None:
    """Stop a service: no new requests, those at work end, then its cards are free.

    Example: vllmdeploy stop-service Llama-3-8B-instruct
    """
    from vllmdeploy.workflows.service_change import decide_stop

    def decide(session: Session) -> ServicePlan:
        return decide_stop(session, name)

    _carry_out(world(context), decide, "stop-service", dry_run=dry_run, yes=yes, invite=False)


def generate(
    context: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to complete, or with --chat to answer.")],
    *,
    model: Annotated[str, typer.Option("--model", help="Default: the only one served.")] = "",
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1)] = 256,
    chat: Annotated[
        bool, typer.Option("--chat", help="As a message, with the model's chat template.")
    ] = False,
) -> None:
    """Ask a served model from the shell; the answer shows as it comes.

    Example: vllmdeploy generate "Hello, I am a" --max-tokens 50
    """
    from vllmdeploy.tools import vllm_ask
    from vllmdeploy.workflows.service_ask import generate as ask

    here = world(context)
    loaded = here.loaded()
    body = vllm_ask.body(prompt, model=model, max_tokens=max_tokens, chat=chat)
    pieces: list[str] = []

    def show(text: str) -> None:
        pieces.append(text)
        if not here.json:
            typer.echo(output.clean(text), nl=False)

    with here.session(loaded, loaded.fleet.offering) as session:
        ask(session, body, show)
    if here.json:
        output.document({"text": "".join(pieces)})
    else:
        output.answer("")


def _carry_out(
    here: World,
    decide: Callable[[Session], ServicePlan],
    what: str,
    *,
    dry_run: bool,
    yes: bool,
    invite: bool,
) -> None:
    from vllmdeploy.cli import progress
    from vllmdeploy.workflows import cluster

    with here.session(here.loaded()) as session:
        session.need_all()
        if dry_run:
            decided = decide(session)
            show_plan(here, model_sync.shown_first(session, decided.lacks, decided.plan))
            return
        with cluster.locked(session, what) as stop:
            decided = decide(session)
            if decided.lacks:
                model_sync.bring_what_lacks(here, session, decided.lacks, yes=yes)
                decided = decide(session)
            if not decided.plan.steps:
                output.say("nothing to do: it is as wanted")
                if here.json:
                    output.document({"steps": []})
                return
            for note in decided.plan.notes:
                output.say(f"note: {note}")
            for step in decided.plan:
                output.say(output.step_line(step))
            output.confirm(f"Carry out these {len(decided.plan)} steps?", yes=yes)
            with progress.shown() as on_event:
                applied = cluster.apply(session, decided.plan, what, on_event, stop)
                back = decided.back(applied.outcomes)
                if back.steps:
                    undone = cluster.apply(session, back, f"{what}: undone", on_event, stop)
                    lost = "what was there before is not back"
                    output.say(lost if undone.failed else "undone: as before")
        conclude(here, applied, stop, keys=decided.keys)
        if invite and not here.json:
            output.answer(
                invitation(
                    session.settings, decided.keys, decided.service.names[0], decided.address
                )
            )


_HELLO = MappingProxyType({"prompt": "Hello, I am a", "max_tokens": 50})


def invitation(
    settings: Settings,
    keys: Keys,
    model: str,
    address: str,
    *,
    route: str = "/generate",
    asking: Mapping[str, object] = _HELLO,
) -> str:
    """A line that works from another machine, and keys that nobody has seen before."""
    import json

    from vllmdeploy.config.front_door import ANYWHERE

    lines: list[str] = []
    if keys.new_key:
        lines.append(shown_once("API key", keys.new_key))
    if keys.new_admin_key:
        lines.append(shown_once("admin key", keys.new_admin_key))
    host = address if settings.api_host in ANYWHERE else settings.api_host
    header = "" if keys.gateway.keyless else f" -H 'Authorization: Bearer {keys.new_key or '$KEY'}'"
    if header and not keys.new_key:
        header = header.replace("'", '"')
    body = json.dumps({"model": model, **asking})
    lines.append(
        f"curl http://{host}:{settings.api_port}{route}{header}"
        f" -H 'Content-Type: application/json' -d '{body}'"
    )
    if header and not keys.new_key:
        another = "as it was shown when it was made; `vllmdeploy keys add NAME` makes another"
        file = settings.api_keys_file
        lines.append(f"KEY: {another if file is None else f'one of {file}'}")
    return "\n".join(lines)
