"""Services as they are stored on a head: what the planner needs to know of each again."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from vllmdeploy.core.command import Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.tools.vllm_engine import Executor, Task

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# What a warden calls its own children, and an engine's log would be confused with.
_TAKEN = ("ray", "warden")

_QUESTION = """
cd "$1" 2>/dev/null || exit 0
for file in *.json; do
  [ -f "$file" ] || continue
  printf '\\n@@service@@%s\\n' "$file"
  cat -- "$file"
done
exit 0
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One engine of a served model. `names`: all that the service answers to, its own first;
    `replica_of`: the service, where the engine has another name; `asked`: what the user wanted,
    for the next start. Without Ray, `placement` is the cards by host in the order of ranks,
    `visible` what keeps each rank to them, `ranks_ports` where ranks and their wardens meet."""

    name: str
    model: str
    names: tuple[str, ...]
    port: int
    host: str = "127.0.0.1"
    group: str = "default"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    executor: Executor = "ray"
    task: Task = "generate"
    max_num_seqs: int = 0
    generation: int = 1
    head: str = ""
    replica_of: str = ""
    placement: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    visible: Mapping[str, Mapping[str, str]] = field(default_factory=dict[str, Mapping[str, str]])
    ranks_ports: tuple[int, ...] = ()
    asked: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def belongs_to(self) -> str:
        """The service that people know: one engine, or several that do the same."""
        return self.replica_of or self.name

    @property
    def leader(self) -> str:
        """The host whose warden runs the engine's API server."""
        return next(iter(self.placement), self.head)

    @property
    def ports(self) -> tuple[int, ...]:
        """All that its leader listens on."""
        return (self.port, *self.ranks_ports)

    @property
    def world(self) -> int:
        """How many cards it holds."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def document(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One file of the services folder. Without `service` it is not one of ours to plan with."""

    file: str
    content: bytes
    service: Service | None = None
    problem: str = ""

    @property
    def argv(self) -> tuple[str, ...]:
        """The engine's command line, as the warden runs it."""
        try:
            words = cast("dict[str, list[object]]", json.loads(self.content))["argv"]
            return tuple(map(str, words))
        except (ValueError, KeyError, TypeError):
            return ()


def stored(folder: str) -> Fact[Mapping[str, Stored]]:
    """Every spec file of a node's services folder by the name it would have as a service."""
    return Fact(
        name="services",
        command=script(_QUESTION, folder, root=True).within(20),
        parse=_parse,
    )


def _parse(result: Result) -> Mapping[str, Stored]:
    found: dict[str, Stored] = {}
    for part in result.stdout.split("\n@@service@@")[1:]:
        file, _, text = part.partition("\n")
        found[file.removesuffix(".json")] = _stored(file, text)
    return found


def _stored(file: str, text: str) -> Stored:
    content = text.rstrip("\n").encode() + b"\n"
    try:
        shown = cast("dict[str, Any]", json.loads(text))["service"]
        service = _service(cast("dict[str, Any]", shown))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return Stored(file=file, content=content, problem=f"{file}: not a service of ours: {error}")
    return Stored(file=file, content=content, service=service)


def _service(shown: Mapping[str, Any]) -> Service:
    """Keys of a later version are left alone; one that is missing has its default."""
    known = {one.name for one in fields(Service)}
    given = {key: value for key, value in shown.items() if key in known}
    given["names"] = tuple(map(str, given.get("names", ())))
    given["ranks_ports"] = tuple(map(int, given.get("ranks_ports", ())))
    placement = cast("Mapping[str, Any]", given.get("placement", {}))
    given["placement"] = {str(host): tuple(map(int, one)) for host, one in placement.items()}
    return Service(**given)


def name_fault(name: str) -> str:
    """Why no service can have this name; empty where one can."""
    if name in _TAKEN:
        return "that is what a node calls a part of its own"
    if not _NAME.fullmatch(name):
        return "letters, digits, '.', '_' and '-' only, 100 at most, a letter or digit first"
    return ""
