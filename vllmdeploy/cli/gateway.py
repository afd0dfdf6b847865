"""`gateway`: run one by hand, look at it, and steer it while it runs."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import World, world
from vllmdeploy.errors import UsageError

if TYPE_CHECKING:
    from vllmdeploy.cli.gateway_table import Look
    from vllmdeploy.config.settings import Loaded
    from vllmdeploy.effects.gateway_admin import GatewayAdmin

app = typer.Typer(help="The router and control plane in front of all instances.")

Url = Annotated[
    str,
    typer.Option(help="The gateway. Default: that of the first of GATEWAY_HOSTS, or of the head."),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--admin-key-file", help="Admin key. Default: ADMIN_KEY_FILE, else the head's own, by SSH."
    ),
]
Instance = Annotated[str, typer.Argument(help="An instance's id, as `gateway list` shows it.")]


@app.callback(no_args_is_help=True)
def _group() -> None:
    """The router and control plane in front of all instances."""


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def run(context: typer.Context) -> None:
    """Run a gateway in the foreground; `vllmdeploy gateway run --help` lists its options.

    Example: vllmdeploy gateway run --upstream http://10.0.0.2:8100 --listen 127.0.0.1:8000
    """
    from vllmdeploy.gateway.__main__ import main

    raise typer.Exit(main(context.args, prog="vllmdeploy gateway run"))


@app.command()
def status(
    context: typer.Context,
    *,
    url: Url = "",
    admin_key_file: KeyFile = None,
    watch: Annotated[bool, typer.Option("--watch", help="A live table.")] = False,
) -> None:
    """Show the gateway's state and every instance with its load.

    Example: vllmdeploy gateway status --watch
    """
    from vllmdeploy.cli.gateway_table import tables

    here = world(context)
    with _admin(here, url, admin_key_file) as gateway:
        before: Look | None = None
        while True:
            root, look = gateway.root(), _look(gateway)
            if watch and not here.json:
                output.clear()
            if here.json:
                instances = [*look.instances]
                output.document({**root, "instances": instances, "policy": gateway.policy()})
            else:
                output.answer(f"{_summary(gateway.url, root)}\n{tables(before, look)}")
            if not watch:
                return
            before = look
            time.sleep(1)


def _look(gateway: GatewayAdmin) -> Look:
    from vllmdeploy.cli.gateway_table import Look
    from vllmdeploy.tools.gateway_page import Page, parse

    instances, page = gateway.instances(), parse(gateway.metrics())
    return Look(at=time.monotonic(), instances=instances, page=page or Page())


def _summary(url: str, root: dict[str, Any]) -> str:
    ready = root.get("instances", {})
    return (
        f"{url}: {root.get('state')}, {ready.get('ready')} of {ready.get('total')} instances ready"
    )


@app.command("list")
def list_(context: typer.Context, *, url: Url = "", admin_key_file: KeyFile = None) -> None:
    """List the instances.

    Example: vllmdeploy gateway list --json
    """
    here = world(context)
    with _admin(here, url, admin_key_file) as gateway:
        instances = gateway.instances()
    if here.json:
        output.document({"instances": instances})
    else:
        _answer_table(instances)


@app.command()
def add(
    context: typer.Context,
    upstream: Annotated[str, typer.Argument(help="URL of a vLLM server, http://HOST:PORT.")],
    *,
    name: Annotated[str, typer.Option(help="Its id. Default: HOST:PORT.")] = "",
    weight: Annotated[float, typer.Option(help="Its share of requests.")] = 1.0,
    cost: Annotated[float, typer.Option(help="What a token costs there.")] = 1.0,
    url: Url = "",
    admin_key_file: KeyFile = None,
) -> None:
    """Put an instance behind the gateway; it is used once it answers.

    Example: vllmdeploy gateway add http://10.0.0.4:8000
    """
    spec: dict[str, object] = {"url": upstream, "weight": weight, "cost": cost}
    if name:
        spec["id"] = name
    with _admin(world(context), url, admin_key_file) as gateway:
        _shown(world(context), gateway.add(spec))


@app.command()
def drain(
    context: typer.Context, instance: Instance, *, url: Url = "", admin_key_file: KeyFile = None
) -> None:
    """Send an instance nothing new; what it works on is finished.

    Example: vllmdeploy gateway drain 10.0.0.4:8000
    """
    with _admin(world(context), url, admin_key_file) as gateway:
        _shown(world(context), gateway.drain(instance))


@app.command()
def resume(
    context: typer.Context, instance: Instance, *, url: Url = "", admin_key_file: KeyFile = None
) -> None:
    """Use a drained instance again.

    Example: vllmdeploy gateway resume 10.0.0.4:8000
    """
    with _admin(world(context), url, admin_key_file) as gateway:
        _shown(world(context), gateway.resume(instance))


@app.command()
def remove(
    context: typer.Context, instance: Instance, *, url: Url = "", admin_key_file: KeyFile = None
) -> None:
    """Take an instance out of the gateway; the instance itself is not touched.

    Example: vllmdeploy gateway remove 10.0.0.4:8000
    """
    with _admin(world(context), url, admin_key_file) as gateway:
        _shown(world(context), gateway.remove(instance))


@app.command()
def policy(
    context: typer.Context,
    routing: Annotated[str, typer.Argument(help="Routing policy to use from now on.")] = "",
    *,
    scheduling: Annotated[str, typer.Option(help="Who is next when all are busy.")] = "",
    url: Url = "",
    admin_key_file: KeyFile = None,
) -> None:
    """Show or change how requests find instances.

    Example: vllmdeploy gateway policy prefix_affinity
    """
    wanted = {"routing": routing, "scheduling": scheduling}
    ways = {name: value for name, value in wanted.items() if value}
    with _admin(world(context), url, admin_key_file) as gateway:
        now = gateway.set_policy(ways) if ways else gateway.policy()
    if world(context).json:
        output.document(now)
    else:
        output.answer("\n".join(f"{name}: {value or '-'}" for name, value in now.items()))


@contextmanager
def _admin(here: World, url: str, key_file: Path | None) -> Generator[GatewayAdmin]:
    from vllmdeploy.config.front_door import api_url
    from vllmdeploy.effects.gateway_admin import GatewayAdmin

    key = ""
    if not url or key_file is None:
        loaded = here.loaded()
        key_file = key_file or loaded.settings.admin_key_file
        if not url:
            url = api_url(loaded.settings, loaded.fleet.offering[0])
            # The fleet's own key goes to the fleet's own gateway only.
            key = _heads_key(here, loaded) if key_file is None else ""
    gateway = GatewayAdmin(url, key or _key(key_file))
    try:
        yield gateway
    finally:
        gateway.close()


def _heads_key(here: World, loaded: Loaded) -> str:
    """Who may log in to the head as its operator may steer its gateway."""
    from vllmdeploy.workflows.keys_on_hosts import admin_key

    with here.head_session(loaded) as session:
        text = admin_key(session)
    return _first(text, f"the admin key on {loaded.fleet.head.name}") if text else ""


def _key(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return _first(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {error}") from error


def _first(text: str, source: str) -> str:
    """The first key, with or without a name before it."""
    words = text.split()
    if not words or "sha256:" in words[0]:
        raise UsageError(
            f"{source} holds no key that could be sent", hint="--admin-key-file FILE names another"
        )
    return words[0].rpartition(":")[2]


def _shown(here: World, instance: dict[str, Any]) -> None:
    if warning := instance.get("warning"):
        output.say(f"warning: {warning}")
    if here.json:
        output.document(instance)
    else:
        _answer_table([instance])


def _answer_table(instances: Sequence[dict[str, Any]]) -> None:
    from vllmdeploy.cli.gateway_table import instances_table

    output.answer(instances_table(instances))
