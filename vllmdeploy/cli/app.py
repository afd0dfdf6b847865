"""The command line: options for all commands, the commands, and how an error leaves."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from vllmdeploy import __version__
from vllmdeploy.cli import (
    batch,
    capacity,
    cluster,
    demo,
    devices,
    export,
    gateway,
    image,
    init,
    instances,
    keys,
    looking,
    model,
    mps,
    node,
    output,
    rerank,
    service,
    trust,
)
from vllmdeploy.cli.context import World
from vllmdeploy.cli.fitted import fitted, meant
from vllmdeploy.errors import EXIT_INTERRUPTED, UsageError, VllmdeployError

app = typer.Typer(
    name="vllmdeploy",
    help="From bare GPU servers to a monitored LLM API, and kept there:"
    " Ray clusters and vLLM over SSH and Docker.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="--config, --nodes and --json may stand before or after the command.",
)

# Options of the whole program with the number of values that follow them.
_EVERYWHERE = {"--config": 1, "--nodes": 1, "--json": 0}
# Set by a shell that asks how a line could go on.
_COMPLETING = "_VLLMDEPLOY_COMPLETE"


def _version(wanted: bool) -> None:
    if wanted:
        output.answer(f"vllmdeploy {__version__}")
        raise typer.Exit


@app.callback()
def _everywhere(
    context: typer.Context,
    *,
    config: Annotated[
        Path | None, typer.Option(help="Settings file. Default: config.env, where it is there.")
    ] = None,
    nodes: Annotated[
        Path | None, typer.Option(help="List of hosts. Default: WORKER_NODES_FILE.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Answer as JSON on stdout.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    gc.enable()
    here = context.obj if isinstance(context.obj, World) else World()
    context.obj = replace(
        here, config=config or here.config, nodes=nodes or here.nodes, json=json or here.json
    )


def hoisted(argv: Sequence[str]) -> list[str]:
    """The program's own options moved before the command, so that they may stand anywhere.

    Behind `--` nothing is ours, and `gateway run` has options of its own, the same as the program
    that runs in containers.
    """
    own: list[str] = []
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--" or rest[:2] == ["gateway", "run"]:
            rest += [word, *words]
            break
        name, equals, _ = word.partition("=")
        values = _EVERYWHERE.get(name)
        if values is None or (equals and values == 0):
            rest.append(word)
            continue
        own.append(word)
        if values and not equals:
            value = next(words, None)
            if value is None:
                raise UsageError(f"{word} needs a value")
            own.append(value)
    return own + rest


def main(argv: Sequence[str] | None = None, world: World | None = None) -> None:
    try:
        arguments = hoisted(sys.argv[1:] if argv is None else argv)
        program = app if _COMPLETING in os.environ else fitted(app, meant(arguments, _EVERYWHERE))
        program(args=arguments, prog_name="vllmdeploy", obj=world)
    except VllmdeployError as error:
        output.error(error)
        raise SystemExit(error.exit_code) from None
    except SystemExit as ended:
        # Typer has turned KeyboardInterrupt into this.
        if ended.code == EXIT_INTERRUPTED:
            output.say("interrupted; the next run goes on from here")
        raise


app.command()(init.init)
app.command()(trust.trust)
cluster.mount(app)
looking.mount(app)
node.mount(app)
service.mount(app)
demo.mount(app)
app.command()(capacity.capacity)
devices.mount(app)
app.add_typer(export.app, name="export")
app.add_typer(gateway.app, name="gateway")
app.add_typer(instances.app, name="instances")
app.add_typer(keys.app, name="keys")
app.add_typer(batch.app, name="batch")
app.add_typer(model.app, name="model")
app.add_typer(image.app, name="image")
app.add_typer(mps.app, name="mps")
app.add_typer(rerank.app, name="rerank")
