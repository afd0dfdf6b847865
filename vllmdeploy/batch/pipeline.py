"""The Python call: read, call, parse, aggregate over one JSONL file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from vllmdeploy.batch.conclude import Paths
from vllmdeploy.batch.parsing import Parse
from vllmdeploy.batch.progress import Progress
from vllmdeploy.batch.records import Read
from vllmdeploy.batch.run import run_batch
from vllmdeploy.batch.runner import Listener
from vllmdeploy.batch.spec import Aggregate, BatchSpec, Effort, Hooks
from vllmdeploy.batch.urls import upstreams_of
from vllmdeploy.client.options import urls_of
from vllmdeploy.routing.upstream import Upstream


@runtime_checkable
class HasUpstreams(Protocol):
    """A client that says where it sends: `MultiVLLMClient` is one."""

    @property
    def upstreams(self) -> Sequence[Upstream]: ...


@runtime_checkable
class HasKey(Protocol):
    """A client that says which key it sends."""

    @property
    def api_key(self) -> str: ...


def run_pipeline(
    input_jsonl: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    client: HasUpstreams | str | Sequence[str] | None = None,
    model: str | None = None,
    *,
    read: Read | None = None,
    parse: Parse | str | None = None,
    aggregate: Aggregate | None = None,
    api_key: str | None = None,
    concurrency: int | None = None,
    restart: bool = False,
    retry_errors: bool = False,
    include_input: bool = False,
    listener: Listener | None = None,
) -> Paths:
    """Sends every row to the model once and returns where the answers are.

    `client` is a MultiVLLMClient, whose api_key is used unless another is given, a URL or several;
    without it, the instances that VLLM_PORTS and VLLM_HOST name, by default those of the ports 8001
    to 8004 on this machine.
    `read` makes a prompt, messages or a request body of a row's fields; `parse` makes a JSON value
    of an answer's text and raises ValueError for one that must be asked for again, or is "json" or
    "regex:PATTERN"; `aggregate` gets all result rows and its value goes into summary.json.
    Called again after a stop of any kind, it goes on where it stopped.
    """
    spec = BatchSpec(
        input=Path(input_jsonl),
        output=Path(output_dir),
        upstreams=_upstreams(client),
        key=_key(client) if api_key is None else api_key,
        model=model,
        parse=parse if isinstance(parse, str) else None,
        hooks=Hooks(read, None if isinstance(parse, str) else parse, aggregate),
        effort=Effort(concurrency=concurrency),
        restart=restart,
        retry_errors=retry_errors,
        include_input=include_input,
    )
    return run_batch(spec, listener=listener or _silent, say=_quiet).paths


def _upstreams(client: HasUpstreams | str | Sequence[str] | None) -> tuple[Upstream, ...]:
    if client is None:
        return upstreams_of(urls_of(None, None))
    if isinstance(client, str):
        return upstreams_of([client])
    if isinstance(client, HasUpstreams):
        return tuple(replace(one, id=str(one.address)) for one in client.upstreams)
    return upstreams_of([*client])


def _key(client: object) -> str:
    return client.api_key if isinstance(client, HasKey) else ""


def _silent(_: Progress) -> None:
    return


def _quiet(_: str) -> None:
    return
