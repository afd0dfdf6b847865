"""`keys`: API keys of the gateway, live while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import World, world
from vllmdeploy.errors import UsageError

app = typer.Typer(help="API keys of the gateway: add, list, revoke.", no_args_is_help=True)

File = Annotated[Path | None, typer.Option(help="File of keys. Default: API_KEYS_FILE.")]


@app.command()
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Who gets it: a name for metrics and for revoking.")],
    *,
    file: File = None,
    models: Annotated[str, typer.Option(help="Only these models, with commas.")] = "",
    expires: Annotated[str, typer.Option(help="A date, 2027-01-31.")] = "",
    per_minute: Annotated[int, typer.Option(min=0, help="Requests a minute; 0: any.")] = 0,
    tokens_per_day: Annotated[int, typer.Option(min=0, help="Tokens a day; 0: any.")] = 0,
) -> None:
    """Make a key, store its hash, show it once.

    Example: vllmdeploy keys add alice --per-minute 60
    """
    from vllmdeploy.workflows import keys

    here = world(context)
    options = {
        "models": models,
        "expires": expires,
        "per_minute": str(per_minute or ""),
        "tokens_per_day": str(tokens_per_day or ""),
    }
    path = _file(here, file)
    words = [f"{option}={value}" for option, value in options.items() if value]
    key = keys.add(path, name, words)
    output.say(f"stored as a hash in {path}; this is the only time that it is shown:")
    if here.json:
        output.document({"name": name, "key": key})
    else:
        output.answer(key)


@app.command("list")
def list_(context: typer.Context, *, file: File = None) -> None:
    """Show the names and limits of all keys.

    Example: vllmdeploy keys list
    """
    from vllmdeploy.workflows import keys

    here = world(context)
    found = keys.listed(_file(here, file))
    if here.json:
        output.document({"keys": [{"name": one.name, "limits": one.limits} for one in found]})
    else:
        output.answer(output.table(("NAME", "LIMITS"), [(one.name, one.limits) for one in found]))


@app.command()
def revoke(context: typer.Context, name: str, *, file: File = None) -> None:
    """Remove a key; running gateways notice by themselves.

    Example: vllmdeploy keys revoke alice
    """
    from vllmdeploy.workflows import keys

    path = _file(world(context), file)
    keys.revoke(path, name)
    output.say(f"{name} is removed from {path}")


def _file(here: World, file: Path | None) -> Path:
    path = file or here.settings().api_keys_file
    if path is None:
        raise UsageError("no file of keys", hint="give --file FILE, or set API_KEYS_FILE")
    return path
