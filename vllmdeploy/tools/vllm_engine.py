"""An engine: its command line, the file by which a warden runs it, and what the warden says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from vllmdeploy.core.command import Result
from vllmdeploy.core.reading import count, fields, number
from vllmdeploy.errors import last_line
from vllmdeploy.tools.vllm import SERVE, SERVER, Vllm, normal

Task = Literal["generate", "embed", "rerank"]
Executor = Literal["ray", "mp"]
START_LIMIT_S = 1800.0

# Flags that the plan itself decides, and what to say instead.
_OURS = {
    "--model": "the MODEL argument",
    "--host": "API_HOST, for the gateway",
    "--port": "ENGINE_PORTS, or API_PORT for the gateway",
    "--uds": "ENGINE_PORTS",
    "--served-model-name": "--name and --alias",
    "--tensor-parallel-size": "the TP argument",
    "-tp": "the TP argument",
    "--pipeline-parallel-size": "--pp",
    "-pp": "--pp",
    "--distributed-executor-backend": "EXECUTOR",
    "--nnodes": "EXECUTOR=mp",
    "--node-rank": "EXECUTOR=mp",
    "--master-addr": "EXECUTOR=mp",
    "--master-port": "EXECUTOR=mp",
    "--headless": "EXECUTOR=mp",
    "--api-key": "API_KEYS_FILE: the gateway asks for keys",
    "--root-path": "the gateway",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """The place of one engine process among those of several hosts, without Ray."""

    index: int
    count: int
    master: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """One vLLM server. `names`: all that it answers to, its own first."""

    model: str
    names: tuple[str, ...]
    port: int
    host: str = "127.0.0.1"
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    executor: Executor = "ray"
    task: Task = "generate"
    rank: Rank | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    gpu_memory_utilization: float | None = None
    quantization: str = ""
    drain_s: int = 30
    arguments: tuple[str, ...] = ()


def taken_flags(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """One line for each argument that would work against the plan."""
    return tuple(
        f"{word.partition('=')[0]} is not given here: use {_OURS[normal(word)]}"
        for word in arguments
        if normal(word) in _OURS
    )


def free_flags(arguments: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are the user's to give."""
    return tuple(word for word in arguments if normal(word) not in _OURS)


# What warden and gateway ask each second would push everything else out of the logs.
_QUIET_ABOUT = "--disable-access-log-for-endpoints"
_ASKED_ALL_THE_TIME = "/health,/metrics"


def argv(engine: EngineSpec, vllm: Vllm) -> tuple[str, ...]:
    """The engine's command line for this vLLM; the user's own flags come last and so win."""
    begin = (*SERVE, engine.model) if vllm.serve else (*SERVER, "--model", engine.model)
    return (
        *begin,
        *("--served-model-name", *engine.names),
        *("--host", engine.host, "--port", str(engine.port)),
        *("--tensor-parallel-size", str(engine.tensor_parallel)),
        *_when(engine.pipeline_parallel > 1, "--pipeline-parallel-size", engine.pipeline_parallel),
        # One process alone needs no executor around it.
        *_when(
            engine.executor == "ray" or engine.tensor_parallel * engine.pipeline_parallel > 1,
            "--distributed-executor-backend",
            engine.executor,
        ),
        *(_ranks(engine.rank) if engine.rank else ()),
        *_task(engine.task, vllm),
        *_given("--max-model-len", engine.max_model_len),
        *_given("--max-num-seqs", engine.max_num_seqs),
        *_given("--max-num-batched-tokens", engine.max_num_batched_tokens),
        *_given("--gpu-memory-utilization", engine.gpu_memory_utilization),
        *_when(bool(engine.quantization), "--quantization", engine.quantization),
        *_when(vllm.knows("--shutdown-timeout"), "--shutdown-timeout", engine.drain_s),
        *_when(vllm.knows(_QUIET_ABOUT), _QUIET_ABOUT, _ASKED_ALL_THE_TIME),
        *engine.arguments,
    )


def _when(true: bool, flag: str, value: object) -> tuple[str, ...]:
    return (flag, str(value)) if true else ()


def _given(flag: str, value: object) -> tuple[str, ...]:
    return () if value is None else (flag, str(value))


def _ranks(rank: Rank) -> tuple[str, ...]:
    return (
        *("--nnodes", str(rank.count), "--node-rank", str(rank.index)),
        *("--master-addr", rank.master, "--master-port", str(rank.port)),
        *(("--headless",) if rank.index else ()),
    )


def _task(task: Task, vllm: Vllm) -> tuple[str, ...]:
    if task == "generate":
        return ()
    # Nobody was asked for an export: then it is a recent one, which has no --task any more.
    if vllm.knows("--runner") or vllm == Vllm():
        return ("--runner", "pooling")
    return ("--task", "embed" if task == "embed" else "score")


def canary(task: Task, model: str) -> tuple[str, Mapping[str, object]]:
    """The smallest request that only a working engine answers: its route and body."""
    match task:
        case "generate":
            body = {"prompt": "a", "max_tokens": 1, "temperature": 0}
            return "/v1/completions", {"model": model, **body}
        case "embed":
            return "/v1/embeddings", {"model": model, "input": "a"}
        case "rerank":
            return "/rerank", {"model": model, "query": "a", "documents": ["a"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFile:
    """The file by which a warden runs an engine. `service` is kept for us and not read by it;
    `node`: the only host whose warden runs it; `ranks`: what it and others begin together by."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    url: str = ""
    canary: tuple[str, Mapping[str, object]] | None = None
    needs_ray: bool = True
    nodes: tuple[str, ...] = ()
    node: str = ""
    ranks: Mapping[str, object] = field(default_factory=dict[str, object])
    start_limit_s: float = START_LIMIT_S
    drain_s: int = 30
    service: Mapping[str, object] = field(default_factory=dict[str, object])

    def content(self) -> bytes:
        document: dict[str, object] = {
            "name": self.name,
            "argv": list(self.argv),
            "env": dict(self.environment),
            "needs": ["ray"] if self.needs_ray else [],
            "nodes": list(self.nodes),
            "start_limit_s": self.start_limit_s,
            "stop_limit_s": self.drain_s + 15.0,
            "service": dict(self.service),
        }
        document |= {"node": self.node} if self.node else {}
        document |= {"ranks": dict(self.ranks)} if self.ranks else {}
        if self.url:
            document |= {"health_url": f"{self.url}/health", "metrics_url": f"{self.url}/metrics"}
        if self.url and self.canary:
            route, body = self.canary
            document |= {"canary_url": f"{self.url}{route}", "canary_body": dict(body)}
        return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineState:
    """What a node's warden says of one engine. `state` is empty where it does not run it."""

    state: str = ""
    reason: str = ""
    failures: int = 0
    exit_code: int | None = None
    since: float = 0.0
    restarts: int = 0
    last_lines: tuple[str, ...] = ()
    failure: str = ""
    problem: str = ""
    generation: str = ""
    took_s: float | None = None
    """How long its last start took."""
    placement: Mapping[str, int] = field(default_factory=dict[str, int])
    """Cards by host, where Ray has said it."""

    @property
    def words(self) -> str:
        if self.problem:
            return self.problem
        return f"{self.state}: {self.reason}" if self.reason else self.state or "not seen yet"


def parse_engines(result: Result) -> Mapping[str, EngineState]:
    """All engines of one node, from the answer of its warden's `ctl status`."""
    try:
        shown = cast("dict[str, Any]", json.loads(result.stdout))
        engines = cast("dict[str, dict[str, Any]]", shown["engines"])
        bad = cast("dict[str, str]", shown.get("bad_specs") or {})
        found = {name: _state(one) for name, one in engines.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {"": EngineState(problem=last_line(result.output))}
    for file, problem in bad.items():
        name = file.removesuffix(".json")
        found.setdefault(name, EngineState(problem=f"the warden refuses {file}: {problem}"))
    return found


def parse_engine(result: Result, name: str) -> EngineState:
    engines = parse_engines(result)
    return engines.get(name) or engines.get("") or EngineState()


def _state(shown: dict[str, Any]) -> EngineState:
    """The engine as its leader has it, with the failures of its rank that failed most."""
    own = _own_state(shown)
    ranks = cast("list[dict[str, Any]]", shown.get("ranks") or [])
    none: dict[str, Any] = {}
    worst = max(ranks, key=lambda one: int(one.get("failures") or 0), default=none)
    if int(worst.get("failures") or 0) <= own.failures or own.state == "running":
        return own
    host, code = str(worst.get("host")), worst.get("exit_code")
    lines = cast("list[object]", worst.get("lines") or [])
    return replace(
        own,
        failures=int(worst["failures"]),
        exit_code=code if isinstance(code, int) else None,
        failure=f"rank {worst.get('rank')} on {host}: {worst.get('reason')}",
        last_lines=tuple(f"{host}: {line}" for line in lines),
    )


def _own_state(shown: dict[str, Any]) -> EngineState:
    failure = cast("dict[str, Any]", shown.get("last_failure") or {})
    ended = cast("dict[str, Any]", shown.get("last_exit") or {})
    lines = failure.get("last_lines") or shown.get("last_lines") or ()
    code = ended.get("code")
    return EngineState(
        state=str(shown.get("state", "")),
        reason=str(shown.get("reason") or ""),
        failures=int(shown.get("failures") or 0),
        exit_code=code if isinstance(code, int) else None,
        since=float(shown.get("since") or 0.0),
        restarts=int(shown.get("restarts") or 0),
        last_lines=tuple(map(str, lines)),
        failure=str(failure.get("reason") or ""),
        generation=str(shown.get("generation") or ""),
        took_s=number(shown.get("took_s")),
        placement={host: count(cards) for host, cards in fields(shown.get("placement")).items()},
    )
