"""Engines that one batch run has for itself on a Ray cluster: started, watched, started again."""

from __future__ import annotations

import contextlib
import importlib
import secrets
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from vllmdeploy.batch import ray_worker
from vllmdeploy.batch.answers import Reply
from vllmdeploy.batch.calls import HttpCalls
from vllmdeploy.batch.transport import CallFailed, Transport
from vllmdeploy.core import causes
from vllmdeploy.errors import NotHealthy, UsageError
from vllmdeploy.routing.upstream import Address, Upstream

_GIVE_UP = 5  # starts in a row that failed
_LOOK_EVERY_S = 1.0
_PAUSES_S = (1.0, 2.0, 5.0, 10.0, 20.0)
_STOP_S = 20.0
# Whose code travels, because a node of Ray need not have this package.
_SENT = (ray_worker, causes)
_REACH_S = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """`argv` is for the Python of the cluster; `{ip}` and `{port}` in it are filled in there.

    `cards` of one node for each engine; 0 on a cluster without cards. `count` 0: as many engines as
    the cluster has cards for.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    count: int = 0
    cards: int = 1
    address: str = "auto"
    ready_s: float = 1200.0


def vllm_argv(model: str, name: str, *, cards: int, more: tuple[str, ...]) -> tuple[str, ...]:
    return (
        *("-m", "vllm.entrypoints.openai.api_server", "--host", "{ip}", "--port", "{port}"),
        *("--model", _plain(model), "--served-model-name", _plain(name)),
        *(("--tensor-parallel-size", str(cards)) if cards > 1 else ()),
        *map(_plain, more),
    )


def _plain(word: str) -> str:
    return word.replace("{", "{{").replace("}", "}}")


class RayEngines:
    """A context: within it the engines are kept alive, after it they are gone."""

    def __init__(self, spec: EngineSpec, *, say: Say) -> None:
        self._spec = spec
        self._say = say
        self._key = secrets.token_urlsafe(24)
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._ray: Any = None
        self.where: dict[Address, Address] = {}
        self.why: dict[Address, str] = {}
        self.given_up: dict[Address, str] = {}

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """Names that stay while the engines behind them come and go."""
        return tuple(Upstream(f"{one.host}", one) for one in self.why)

    def connect(self, timeout: float) -> Transport:
        return _Calls(self, HttpCalls(key=self._key, timeout=timeout))

    def __enter__(self) -> RayEngines:
        ray = self._ray = _joined(self._spec.address)
        for module in _SENT:
            ray.cloudpickle.register_pickle_by_value(module)
        count = self._spec.count or self._that_fit()
        for number in range(1, count + 1):
            self.why[Address(f"engine-{number}", 0)] = "it is not started yet"
        self._say(f"starting {count} engines on the Ray cluster")
        for name in self.why:
            thread = threading.Thread(target=self._keep, args=(name,), daemon=True)
            self._threads.append(thread)
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join(_STOP_S + 3 * _LOOK_EVERY_S)
        for module in _SENT:
            self._ray.cloudpickle.unregister_pickle_by_value(module)
        self._ray.shutdown()

    def _that_fit(self) -> int:
        cards = self._ray.cluster_resources().get("GPU", 0.0)
        if not self._spec.cards:
            return 1
        if cards < self._spec.cards:
            raise UsageError(
                f"the Ray cluster has {cards:g} cards, an engine needs {self._spec.cards}",
                hint="give --tensor-parallel 0 for a cluster without cards",
            )
        return int(cards // self._spec.cards)

    def _keep(self, name: Address) -> None:
        failures = 0
        while not self._closing.is_set():
            answered = self._once(name)
            failures = 1 if answered else failures + 1
            if self._closing.is_set():
                return
            if failures >= _GIVE_UP:
                self.given_up[name] = self.why[name]
                self._say(f"{name.host} is given up: {self.why[name]}")
                return
            self._say(f"{name.host}: {self.why[name]}")
            self._closing.wait(_PAUSES_S[failures - 1])

    def _once(self, name: Address) -> bool:
        """One life of one engine; True if it was well. Whatever Ray raises is why it ended."""
        spec, ray = self._spec, self._ray
        environment = {**spec.environment, "VLLM_API_KEY": self._key}
        worker = None
        was_well = False
        try:
            options: dict[str, Any] = {"max_concurrency": 4, "num_cpus": 1}
            if spec.cards:
                options["num_gpus"] = spec.cards
            self.why[name] = "it waits for a place on the Ray cluster"
            worker = ray.remote(ray_worker.EngineWorker).options(**options).remote()
            ip = self._wait(worker.own_ip.remote())
            self.why[name] = "it loads its model"
            where = self._wait(worker.start.remote(spec.argv, environment, ip, spec.ready_s))
            was_well = where is not None
            if where is not None:
                self.where[name] = Address(*where)
                self._say(f"{name.host} is well: {Address(*where)}")
                ended = self._wait(worker.ended.remote())
                self.why[name] = ended or "stopped"
        except Exception as error:
            said = getattr(error, "cause", None) or error  # not Ray's account of where it was said
            self.why[name] = str(said).strip() or type(said).__name__
        finally:
            self.where.pop(name, None)
            if worker is not None:
                self._end(worker)
        return was_well

    def _wait(self, reference: Any) -> Any:
        """None where we are closing before there is an answer."""
        while not self._closing.is_set():
            ready, _ = self._ray.wait([reference], timeout=_LOOK_EVERY_S)
            if ready:
                return self._ray.get(reference)
        return None

    def _end(self, worker: Any) -> None:
        with contextlib.suppress(Exception):  # it may be dead already, and its engine with it
            self._ray.get(worker.stop.remote(), timeout=_STOP_S)
        with contextlib.suppress(Exception):
            self._ray.kill(worker)


class _Calls:
    """HTTP to wherever an engine is now; one that is starting is like one that is down."""

    def __init__(self, engines: RayEngines, http: HttpCalls) -> None:
        self._engines = engines
        self._http = http

    async def post(self, to: Address, path: str, body: bytes) -> Reply:
        return await self._http.post(self._now(to), path, body)

    async def get(self, to: Address, path: str) -> Reply:
        return await self._http.get(self._now(to), path)

    async def close(self) -> None:
        await self._http.close()

    def _now(self, to: Address) -> Address:
        engines = self._engines
        found = engines.where.get(to)
        if found is not None:
            return found
        if len(engines.given_up) == len(engines.why):
            raise NotHealthy(
                f"no engine stays up: {next(iter(engines.given_up.values()))}",
                hint="see to the cause, then run the same command: it goes on",
            )
        raise CallFailed(f"no engine yet: {engines.why[to].splitlines()[0]}", sent=False)


def _reach(address: str) -> None:
    """Ray itself tries for minutes where nobody listens."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()


def _joined(address: str) -> Any:
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.cloudpickle")
    except ImportError as error:
        raise UsageError(
            "--engine ray needs Ray beside this program",
            hint="pip install 'vllmdeploy[ray]', in the cluster's version of Ray and Python",
        ) from error
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except Exception as error:  # Ray raises many kinds for an address, a version or a token
        raise UsageError(
            f"Ray at {address} cannot be joined: {str(error).strip() or type(error).__name__}",
            hint="run this on a node of the cluster, or set RAY_ADDRESS to HOST:PORT; "
            "a cluster with a token wants RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH here too",
        ) from error
    return ray
