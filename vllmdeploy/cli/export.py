"""`export`: the plan as files, for people who keep their own tooling."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import carry_out, show_plan
from vllmdeploy.cli.context import World, world
from vllmdeploy.cli.service import DryRun, EndingInFlags, Yes
from vllmdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vllmdeploy.config.settings import Loaded
    from vllmdeploy.workflows.export_files import Kind

Model = Annotated[str, typer.Argument(help="Model in MODEL_PATH: its name or repository id.")]
GpusPerInstance = Annotated[
    int | None, typer.Option("--gpus-per-instance", min=1, help="Cards of each.", metavar="K")
]
CountOption = Annotated[
    int | None, typer.Option("--count", min=1, help="Default: as many as there are cards for.")
]
PortsOption = Annotated[str | None, typer.Option("--ports", help="On every host, as 8001-8004.")]
Named = Annotated[str, typer.Option("--name", help="Default: the model's name.")]
Cards = Annotated[int, typer.Option("--cards", min=0, help="Cards per host.", metavar="N")]
To = Annotated[Path | None, typer.Option(help="Folder. Default: PROJECT_PATH, else this folder.")]
Force = Annotated[bool, typer.Option("--force", help="Replace files of other content.")]

app = typer.Typer(help="Write the same plan as files for your own tooling.", no_args_is_help=True)


@app.command()
def scripts(
    context: typer.Context,
    *,
    to: Annotated[
        Path | None, typer.Option(help="Folder. Default: PROJECT_PATH, else this folder.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files of other origin.")] = False,
) -> None:
    """Write deploy_vllm.sh, download_model.sh, start_service.sh and check_status.sh.

    Example: vllmdeploy export scripts --to /opt/vllm-deploy
    """
    from vllmdeploy.workflows.export import export_scripts

    here = world(context)
    settings = here.settings()
    folder = to or settings.project_path or Path.cwd()
    config_folder = here.config.parent if here.config else Path.cwd()
    for path in export_scripts(folder, config_folder=config_folder, force=force):
        output.answer(str(path))


@app.command(cls=EndingInFlags)
def systemd(
    context: typer.Context,
    model: Model,
    *,
    gpus_per_instance: GpusPerInstance = None,
    count: CountOption = None,
    ports: PortsOption = None,
    name: Named = "",
    cards: Cards = 8,
    to: To = None,
    force: Force = False,
) -> None:
    """Write units for instances and their gateway, a folder for each host; no host is asked.

    Example: vllmdeploy export systemd Llama-2-7b --count 4 --cards 4 --to units
    """
    wish = (gpus_per_instance, count, ports, name)
    _instances(context, "systemd", model, wish, cards=cards, to=to, force=force)


@app.command(cls=EndingInFlags)
def compose(
    context: typer.Context,
    model: Model,
    *,
    gpus_per_instance: GpusPerInstance = None,
    count: CountOption = None,
    ports: PortsOption = None,
    name: Named = "",
    rerank: Annotated[
        bool, typer.Option("--rerank", help="As `rerank start` has it, on port 8888.")
    ] = False,
    profile: Annotated[
        str | None,
        typer.Option("--profile", help="With --rerank: production, low-resource or multi-gpu."),
    ] = None,
    cards: Cards = 8,
    to: To = None,
    force: Force = False,
) -> None:
    """Write a compose.yaml for instances and their gateway for each host; no host is asked.

    Example: vllmdeploy export compose Llama-2-7b --gpus-per-instance 2 --to compose
    Example: vllmdeploy export compose Qwen3-Reranker-4B --rerank --profile low-resource
    """
    wish = (gpus_per_instance, count, ports, name)
    if rerank:
        _rerank(context, model, wish, profile, cards=cards, to=to, force=force)
        return
    if profile is not None:
        raise UsageError("--profile goes with --rerank")
    _instances(context, "compose", model, wish, cards=cards, to=to, force=force)


@app.command()
def firewall(
    context: typer.Context,
    *,
    tool: Annotated[
        list[str] | None, typer.Option("--tool", help="ufw, firewalld, nft or iptables.")
    ] = None,
    apply: Annotated[
        bool, typer.Option("--apply", help="Also carry them out, on every host.")
    ] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Print the lines that open each host's ports to the fleet, and the API to its callers.

    Example: vllmdeploy export firewall --tool ufw
    """
    from vllmdeploy.workflows.export_firewall import firewall_lines

    here = world(context)
    if apply:
        _apply(here, tool or (), dry_run=dry_run, yes=yes)
        return
    found = firewall_lines(here.loaded(), tool or ())
    if here.json:
        output.document({"hosts": dict(found)})
    else:
        output.answer("\n".join(found.values()))


def _apply(here: World, tools: Sequence[str], *, dry_run: bool, yes: bool) -> None:
    from vllmdeploy.workflows import cluster
    from vllmdeploy.workflows.export_firewall import decide_apply

    what = "export firewall --apply"
    with here.session(here.loaded()) as session:
        if dry_run:
            show_plan(here, decide_apply(session, tools))
            return
        with cluster.locked(session, what) as stop:
            carry_out(here, session, decide_apply(session, tools), what, stop, yes=yes)


def _rerank(
    context: typer.Context,
    model: str,
    wish: tuple[int | None, int | None, str | None, str],
    profile: str | None,
    *,
    cards: int,
    to: Path | None,
    force: bool,
) -> None:
    from vllmdeploy.plan.rerank import RENDERERS
    from vllmdeploy.workflows.export_files import export_instances
    from vllmdeploy.workflows.rerank_export import asked_offline, on_its_port

    each, count, ports, name = wish
    loaded = on_its_port(
        _loaded(context, TENSOR_PARALLEL_SIZE=each, WORKERS=count, VLLM_PORTS=ports)
    )
    asked = asked_offline(loaded, model, profile, name, tuple(context.args))
    if asked.from_profile:
        output.say(f"note: from profile {asked.profile}: {', '.join(asked.from_profile)}")
    if asked.rerank.max_workers and RENDERERS not in context.args:
        output.say(
            f"note: MAX_WORKERS={asked.rerank.max_workers} is left out: only its image says whether"
            f" it has {RENDERERS}; where it has, add it after --"
        )
    folder = to or loaded.settings.project_path or Path.cwd()
    for path in export_instances(
        loaded, asked.instances, "compose", folder, cards=cards, force=force
    ):
        output.answer(str(path))


def _loaded(context: typer.Context, **flags: object) -> Loaded:
    given = {key: str(value) for key, value in flags.items() if value is not None}
    return world(context).loaded(given, bare_names=True)


def _instances(
    context: typer.Context,
    kind: Kind,
    model: str,
    wish: tuple[int | None, int | None, str | None, str],
    *,
    cards: int,
    to: Path | None,
    force: bool,
) -> None:
    from vllmdeploy.workflows.export_files import export_instances
    from vllmdeploy.workflows.instances_asked import asked_of

    each, count, ports, name = wish
    loaded = _loaded(context, TENSOR_PARALLEL_SIZE=each, VLLM_PORTS=ports)
    settings = loaded.settings
    asked = asked_of(
        settings,
        model,
        profile_name=None,
        count=count,
        hosts=(),
        name=name,
        task="generate",
        arguments=tuple(context.args),
    )
    folder = to or settings.project_path or Path.cwd()
    written = export_instances(loaded, asked.wanted, kind, folder, cards=cards, force=force)
    for path in written:
        output.answer(str(path))
