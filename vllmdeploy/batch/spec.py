"""Everything that one batch run is asked to do."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from vllmdeploy.batch.limits import FREE, Price
from vllmdeploy.batch.lines import MAX_LINE_BYTES
from vllmdeploy.batch.parsing import Parse, parser_of, schema_parser, structured
from vllmdeploy.batch.records import Read, Shape
from vllmdeploy.errors import UsageError
from vllmdeploy.routing.upstream import Upstream

Aggregate: TypeAlias = Callable[[Iterator[Mapping[str, object]]], object]
"""All result rows, one after another, to one JSON value for the summary."""

_PER_INSTANCE = 256
_MOST_IN_FLIGHT = 4096
ORDERS = ("completion", "input")


@dataclass(frozen=True, slots=True)
class Hooks:
    """The user's own code around the model call. Names stand for them in the settings' digest."""

    read: Read | None = None
    parse: Parse | None = None
    aggregate: Aggregate | None = None
    read_name: str = ""


@dataclass(frozen=True, slots=True)
class Effort:
    """How fast and how hard to try; none of it changes what a row's result is."""

    concurrency: int | None = None
    timeout_s: float = 600.0
    retries: int = 5
    repairs: int = 1
    rows_per_second: float | None = None
    tokens_per_minute: float | None = None
    price: Price = field(default_factory=Price)
    max_cost: float | None = None
    give_up_after_s: float | None = None
    policy: str = "least_inflight"
    by_prefix: bool = False


@dataclass(frozen=True, slots=True)
class BatchSpec:
    input: Path
    output: Path
    upstreams: tuple[Upstream, ...]
    key: str = field(default="", repr=False)
    model: str | None = None
    max_tokens: int | None = None
    parse: str | None = None
    schema: Mapping[str, object] | None = None
    hooks: Hooks = field(default_factory=Hooks)
    effort: Effort = field(default_factory=Effort)
    order: str = "completion"
    restart: bool = False
    retry_errors: bool = False
    strict: bool = False
    include_input: bool = False
    font: Path | None = None
    max_line_bytes: int = MAX_LINE_BYTES
    # Rows must be in OpenAI Batch form for this path, and are sent as they are.
    endpoint: str | None = None

    def __post_init__(self) -> None:
        effort = self.effort
        positive = {
            "--concurrency": effort.concurrency,
            "--timeout": effort.timeout_s,
            "--rate": effort.rows_per_second,
            "--tokens-per-minute": effort.tokens_per_minute,
            "--max-cost": effort.max_cost,
            "--max-tokens": self.max_tokens,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise UsageError(f"{name} {value}: must be above zero")
        if effort.max_cost is not None and effort.price == FREE:
            raise UsageError("--max-cost without a price would never stop it", hint="add --price")
        if effort.retries < 0 or effort.repairs < 0:
            raise UsageError("--retries: must not be below zero")
        if self.order not in ORDERS:
            raise UsageError(f"--order {self.order}: unknown", hint=f"one of {', '.join(ORDERS)}")
        if self.parse is not None and self.schema is not None and self.parse != "json":
            raise UsageError("--schema goes with --parse json only")

    @property
    def concurrency(self) -> int:
        most = min(_MOST_IN_FLIGHT, _PER_INSTANCE * len(self.upstreams))
        return self.effort.concurrency or most

    def parser(self) -> Parse | None:
        if self.hooks.parse is not None:
            return self.hooks.parse
        if self.schema is not None:
            return schema_parser(self.schema)
        return None if self.parse is None else parser_of(self.parse)

    def shape(self, model: str | None) -> Shape:
        if self.schema is None:
            return Shape(model, self.max_tokens, self.hooks.read, endpoint=self.endpoint)
        return Shape(model, self.max_tokens, self.hooks.read, structured(self.schema))

    def settings(self, model: str | None) -> Mapping[str, str]:
        """What changes the result of a row: another value needs another output."""
        named = {
            "model": model,
            "max_tokens": self.max_tokens,
            "template": self.hooks.read_name or _name(self.hooks.read),
            "parse": self.parse or _name(self.hooks.parse),
            "schema": _digest(self.schema),
            "include_input": self.include_input or None,
            "max_line_bytes": self.max_line_bytes,
            "endpoint": self.endpoint,
        }
        return {key: str(value) for key, value in named.items() if value is not None}


def _name(hook: Callable[..., object] | None) -> str | None:
    if hook is None:
        return None
    return f"{getattr(hook, '__module__', '')}.{getattr(hook, '__qualname__', type(hook).__name__)}"


def _digest(schema: Mapping[str, object] | None) -> str | None:
    if schema is None:
        return None
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:16]
