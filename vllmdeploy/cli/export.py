"""`export`: the plan as files, for people who keep their own tooling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import world

app = typer.Typer(help="Write the same plan as files for your own tooling.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `export scripts` a command of its own while there is only one."""


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
