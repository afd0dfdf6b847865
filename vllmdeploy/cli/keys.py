"""`keys`: API keys of the gateway, live while it runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.carry import end_with
from vllmdeploy.cli.context import World, world

if TYPE_CHECKING:
    from vllmdeploy.errors import VllmdeployError
    from vllmdeploy.workflows.keys import Listed
    from vllmdeploy.workflows.session import Session

app = typer.Typer(help="API keys of the gateway: add, list, revoke.", no_args_is_help=True)

File = Annotated[
    Path | None,
    typer.Option(help="File of keys. Default: API_KEYS_FILE, else the fleet's own keys."),
]


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
    words = [f"{option}={value}" for option, value in options.items() if value]
    made = ""

    def with_it(text: str, where: str) -> str:
        nonlocal made
        new, made = keys.added(text, where, name, words)
        return new

    where, failed = _changed(here, file, f"keys add {name}", with_it)
    output.say(f"stored as a hash {where}; this is the only time that it is shown:")
    if here.json:
        output.document({"name": name, "key": made})
    else:
        output.answer(made)
    end_with(failed)


@app.command("list")
def list_(context: typer.Context, *, file: File = None) -> None:
    """Show the names and limits of all keys.

    Example: vllmdeploy keys list
    """
    from vllmdeploy.workflows import keys

    here = world(context)
    if path := _file(here, file):
        found = keys.listed(keys.read(path), str(path))
    else:
        found = _of_fleet(here)
    if here.json:
        output.document({"keys": [{"name": one.name, "limits": one.limits} for one in found]})
    else:
        output.answer(output.table(("NAME", "LIMITS"), [(one.name, one.limits) for one in found]))


@app.command()
def revoke(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="As `keys list` shows it.")],
    *,
    file: File = None,
) -> None:
    """Remove a key; running gateways notice by themselves.

    Example: vllmdeploy keys revoke alice
    """
    from vllmdeploy.workflows import keys

    left: tuple[Listed, ...] = ()

    def without_it(text: str, where: str) -> str:
        nonlocal left
        new = keys.revoked(text, where, name)
        left = keys.listed(new, where)
        return new

    where, failed = _changed(world(context), file, f"keys revoke {name}", without_it)
    output.say(f"{name} is removed {where}")
    if not left:
        output.say(
            "note: no key is left, so the gateway refuses everybody; vllmdeploy keys add NAME"
        )
    end_with(failed)


def _file(here: World, file: Path | None) -> Path | None:
    """The file here that holds the keys; None where the fleet made its own."""
    return file or here.settings().api_keys_file


def _changed(
    here: World, file: Path | None, what: str, change: Callable[[str, str], str]
) -> tuple[str, list[VllmdeployError]]:
    """Where the keys are that were changed, for a sentence, and where they are still the old."""
    from vllmdeploy.workflows import keys

    if path := _file(here, file):
        keys.change(path, lambda text: change(text, str(path)))
        later = "" if file else "; `vllmdeploy up` brings it to gateways on other hosts"
        return f"in {path}{later}", []
    return _changed_on_fleet(here, what, change)


def _changed_on_fleet(
    here: World, what: str, change: Callable[[str, str], str]
) -> tuple[str, list[VllmdeployError]]:
    from vllmdeploy.workflows import keys_on_hosts

    with _keepers(here) as session:
        where = session.lead.name
        spread = keys_on_hosts.change(session, what, lambda text: change(text, where))
    if spread.unrecorded:
        output.say(f"note: not in the audit log: {spread.unrecorded.message}")
    for host in spread.failed:
        output.say(f"{host} has the old keys until `vllmdeploy up` reaches it")
    return f"on {', '.join(spread.hosts)}", list(spread.failed.values())


def _of_fleet(here: World) -> tuple[Listed, ...]:
    from vllmdeploy.workflows import keys, keys_on_hosts

    with _keepers(here) as session:
        return keys.listed(keys_on_hosts.read(session), session.lead.name)


@contextmanager
def _keepers(here: World) -> Generator[Session]:
    """Connections to the hosts that have the fleet's keys."""
    from vllmdeploy.workflows import keys_on_hosts

    loaded = here.loaded()
    with here.session(loaded, keys_on_hosts.keepers(loaded.fleet)) as session:
        yield session
