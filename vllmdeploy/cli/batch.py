"""`batch run` and `batch status`: JSONL in, JSONL out, every row exactly once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import world
from vllmdeploy.errors import EXIT_BATCH_ERRORS, UsageError

if TYPE_CHECKING:
    from vllmdeploy.batch.conclude import Finished
    from vllmdeploy.batch.ray_engines import EngineSpec
    from vllmdeploy.batch.spec import BatchSpec, Hooks
    from vllmdeploy.config.settings import Loaded, Settings

app = typer.Typer(help="JSONL in, JSONL out, every row exactly once.", no_args_is_help=True)


@app.command()
def run(
    context: typer.Context,
    input_path: Annotated[
        Path | None, typer.Argument(metavar="IN.jsonl", help="One JSON object a line. INPUT_JSONL.")
    ] = None,
    *,
    output_dir: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for what comes out. OUTPUT_DIR.")
    ] = None,
    upstream: Annotated[
        list[str] | None,
        typer.Option(help="URL of a gateway, instance or OpenAI endpoint. Repeat it for several."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="For rows that name no model.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="For rows that set none.")] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help="File with the key. Default: the fleet's own, for its gateway."),
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Most rows in flight. Default: 256 an instance.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.")] = 600.0,
    retries: Annotated[int, typer.Option(help="More attempts of a row that failed.")] = 5,
    rate: Annotated[float | None, typer.Option(help="Most rows a second.")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(help="Most tokens a minute.")] = None,
    price: Annotated[
        str, typer.Option(help="Of a million tokens, as PROMPT,COMPLETION.", metavar="P,C")
    ] = "0,0",
    max_cost: Annotated[float | None, typer.Option(help="Stop at this cost; --price.")] = None,
    give_up_after: Annotated[
        float | None, typer.Option(help="Seconds of outage to wait for. Default: for ever.")
    ] = None,
    engine: Annotated[
        str, typer.Option(help="http, or ray: engines for this run alone on a Ray cluster.")
    ] = "http",
    engines: Annotated[
        int, typer.Option(min=0, help="With --engine ray: how many. Default: all that fit.")
    ] = 0,
    tensor_parallel: Annotated[
        int, typer.Option(min=0, help="With --engine ray: cards of each engine; 0 without cards.")
    ] = 1,
    policy: Annotated[str, typer.Option(help="Which instance is next.")] = "least_inflight",
    group_by_prefix: Annotated[
        bool, typer.Option("--group-by-prefix", help="Rows that begin alike go together.")
    ] = False,
    order: Annotated[str, typer.Option(help="Of the results: completion or input.")] = "completion",
    template: Annotated[
        Path | None, typer.Option(help="Jinja2 file that makes the prompt of a row's fields.")
    ] = None,
    parse: Annotated[str | None, typer.Option(help="json, or regex:PATTERN.")] = None,
    schema: Annotated[Path | None, typer.Option(help="JSON Schema that answers must fit.")] = None,
    include_input: Annotated[
        bool, typer.Option("--include-input", help="Put each row's input beside its answer.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse an input with a bad row before sending any.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Drop what is there.")] = False,
    retry_errors: Annotated[
        bool, typer.Option("--retry-errors", help="Do the error rows again.")
    ] = False,
) -> None:
    """Send every row of a JSONL file to a model once; run again, it goes on where it stopped.

    Exit code 8: finished, with rows in errors.jsonl. 130: interrupted, nothing is lost.

    Example: vllmdeploy batch run questions.jsonl -o answers --upstream http://gpu-01:8000
    Example: vllmdeploy batch run questions.jsonl -o answers --engine ray --model /data/models/Qwen3
    """
    from vllmdeploy.batch.limits import Price
    from vllmdeploy.batch.parsing import read_schema
    from vllmdeploy.batch.spec import BatchSpec, Effort
    from vllmdeploy.batch.urls import upstreams_of
    from vllmdeploy.cli.batch_ray import engine_spec, model_name

    loaded = world(context).loaded(bare_names=True, fleet=False)
    settings = loaded.settings
    prompt_price, completion_price = _prices(price)
    own = _is_ray(engine, upstream, model)
    spec = BatchSpec(
        input=input_path or settings.input_jsonl,
        output=output_dir or settings.output_dir,
        upstreams=() if own else upstreams_of(upstream or _usual_upstreams(loaded)),
        key=_key(context, settings, api_key_file, own=own or bool(upstream)),
        model=model_name(model) if own else model or (None if upstream else settings.default_model),
        max_tokens=max_tokens,
        parse=parse,
        schema=read_schema(schema) if schema else None,
        hooks=_template_hooks(template),
        effort=Effort(
            concurrency=concurrency,
            timeout_s=timeout,
            retries=retries,
            rows_per_second=rate,
            tokens_per_minute=tokens_per_minute,
            price=Price(prompt_price, completion_price),
            max_cost=max_cost,
            give_up_after_s=give_up_after,
            policy=policy,
            by_prefix=group_by_prefix,
        ),
        order=order,
        restart=restart,
        retry_errors=retry_errors,
        strict=strict,
        include_input=include_input,
        font=settings.font_path,
    )
    wanted = engine_spec(settings, str(model), engines, tensor_parallel) if own else None
    finished = _run(spec, wanted)
    _conclude(finished, json=world(context).json)


@app.command()
def status(
    context: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder given with -o.")],
) -> None:
    """How far a batch is, from any shell.

    Example: vllmdeploy batch status answers
    """
    from vllmdeploy.batch.status import read_status

    found = read_status(folder)
    if world(context).json:
        output.document(asdict(found))
        return
    done = found.ok + found.failed
    output.answer(f"{found.state}: {done}/{found.total} rows, ok {found.ok}, failed {found.failed}")
    if found.holder:
        output.answer(f"run by {found.holder}")
    if found.progress is not None:
        output.answer(_speed(found.progress))
    if found.state == "stopped":
        output.answer("the same batch run command goes on from here")


def _run(spec: BatchSpec, engines: EngineSpec | None = None) -> Finished:
    from vllmdeploy.batch.run import run_batch
    from vllmdeploy.cli.batch_progress import shown
    from vllmdeploy.cli.batch_ray import run_on_ray

    with shown() as listener:
        if engines is not None:
            return run_on_ray(spec, engines, listener)
        return run_batch(spec, listener=listener, say=output.say)


def _conclude(finished: Finished, *, json: bool) -> None:
    summary, paths = finished.summary, finished.paths
    if json:
        named = {name: str(path) for name, path in paths._asdict().items()}
        output.document({**summary, "paths": named})
    else:
        output.answer(f"{summary['rows']} rows: ok {summary['ok']}, failed {summary['failed']}")
        for path in paths:
            output.answer(f"  {path}")
    if finished.failed:
        output.say(f"error rows are in {paths.errors}; --retry-errors does them again")
        raise typer.Exit(EXIT_BATCH_ERRORS)


def _is_ray(engine: str, upstream: list[str] | None, model: str | None) -> bool:
    if engine not in ("http", "ray"):
        raise UsageError(f"--engine {engine}: unknown", hint="one of http, ray")
    if engine == "ray" and upstream:
        raise UsageError("--engine ray starts engines of its own", hint="leave out --upstream")
    if engine == "ray" and not model:
        raise UsageError("--engine ray needs --model", hint="its folder on the nodes, or its name")
    return engine == "ray"


def _speed(progress: Mapping[str, object]) -> str:
    from vllmdeploy.batch.progress import duration

    left = progress["seconds_left"]
    words = [
        f"{progress['inflight']} in flight",
        f"{float(str(progress['rows_per_s'])):.1f} rows/s",
        f"{float(str(progress['tokens_per_s'])):.0f} tokens/s",
        f"time left {duration(float(str(left))) if left is not None else 'unknown'}",
    ]
    waiting = progress["waiting"]
    return ", ".join([*words, f"waiting: {waiting}"] if waiting else words)


def _usual_upstreams(loaded: Loaded) -> list[str]:
    """The instances where VLLM_PORTS names them, else the gateway."""
    from vllmdeploy.config.front_door import api_url

    settings = loaded.settings
    if settings.vllm_ports:
        ports = settings.vllm_ports if settings.use_multi_vllm else settings.vllm_ports[:1]
        return [f"http://{settings.vllm_host}:{port}" for port in ports]
    return [api_url(settings, loaded.fleet.offering[0])]


def _key(context: typer.Context, settings: Settings, path: Path | None, *, own: bool) -> str:
    """`own`: it is not the fleet's gateway that is asked, so its key goes nowhere."""
    from vllmdeploy.cli.fleet_key import fleet_key

    if path is not None:
        return _read_key(path)
    return "" if own or settings.vllm_ports else fleet_key(world(context), settings)


def _read_key(path: Path) -> str:
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {path}: cannot be read: {_why(error)}") from error
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UsageError(
            f"--api-key-file {path}: must hold one key", hint="one line of printable characters"
        )
    return key


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def _prices(text: str) -> tuple[float, float]:
    try:
        prompt, completion = (float(part) for part in text.split(","))
        if not (0 <= prompt < inf and 0 <= completion < inf):
            raise ValueError
    except ValueError as error:
        raise UsageError(f"--price {text}: must be two numbers, as in 0.5,1.5") from error
    return prompt, completion


def _template_hooks(path: Path | None) -> Hooks:
    """The template's text, not its name, stands for it: another text is another batch."""
    from vllmdeploy.batch.spec import Hooks

    if path is None:
        return Hooks()
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import SandboxedEnvironment

    try:
        text = path.read_text(encoding="utf-8")
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=False)
        compiled = environment.from_string(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--template {path}: cannot be read: {_why(error)}") from error
    except TemplateSyntaxError as error:
        raise UsageError(f"--template {path}:{error.lineno}: {error.message}") from error
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Hooks(read=lambda fields: compiled.render(dict(fields)), read_name=f"sha256:{digest}")
