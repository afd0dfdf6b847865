"""From a wanted service and what was found to its spec, or every reason against it at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan import capacity
from vllmdeploy.plan.capacity_model import ModelShape, parse_config
from vllmdeploy.plan.service_cards import Pool, divisors, free_port, pool_of
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.manifest_names import name_of, place_of
from vllmdeploy.tools.vllm_engine import (
    EngineFile,
    EngineSpec,
    argv,
    canary,
    free_flags,
    taken_flags,
)
from vllmdeploy.tools.vllm_model import FoundModel, Quantization, own_method, quantization
from vllmdeploy.tools.vllm_services import Service, name_fault

_GENERATION = "VLLMDEPLOY_GENERATION"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedService:
    """A service with the engine file that the head's warden runs it by."""

    service: Service
    file: EngineFile


def model_folder(wanted: Wanted, asked: ServiceWanted) -> str:
    """MODEL_PATH/NAME, whichever way the model was named."""
    root = wanted.model_path.rstrip("/")
    inner = asked.model.rstrip("/")
    if inner.startswith("/") and inner.rpartition("/")[0] != root:
        raise UsageError(
            f"{asked.model} is not a folder of MODEL_PATH ({root})",
            hint="engines see MODEL_PATH only: name a model that lies in it",
        )
    return place_of(root, name_of(inner)).folder


def service_name(asked: ServiceWanted) -> str:
    return asked.name or name_of(asked.model.rstrip("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Considered:
    """All that follows from what is wanted and what was found, before anything is refused."""

    folder: str
    name: str
    replaces: str
    pool: Pool
    shape: ModelShape | None
    about_model: tuple[str, ...]
    tensor: int
    method: Quantization
    port: int | None
    generation: int


def decide_service(
    wanted: Wanted, asked: ServiceWanted, found: FoundServices, *, replaces: str = ""
) -> DecidedService:
    """`replaces`: the running service that this one takes the place of."""
    it = _consider(wanted, asked, found, replaces)
    reasons = tuple(_reasons(asked, found, it))
    if reasons or it.port is None:
        raise PreflightRefused(reasons)
    service = Service(
        name=it.name,
        model=it.folder.rpartition("/")[2],
        names=names_of(it.name, asked, it.folder),
        port=it.port,
        host=asked.host,
        group=found.head.found.host.group,
        tensor_parallel=it.tensor,
        pipeline_parallel=asked.pipeline_parallel,
        task=asked.task,
        max_num_seqs=asked.max_num_seqs or 0,
        generation=it.generation,
        head=found.head.name,
        asked=asdict(asked),
    )
    engine = engine_of(asked, service, it.folder, it.method.method)
    return DecidedService(service=service, file=_file(wanted, service, engine, found, it.pool))


def _consider(
    wanted: Wanted, asked: ServiceWanted, found: FoundServices, replaces: str
) -> _Considered:
    folder = model_folder(wanted, asked)
    pool = pool_of(found, besides=replaces)
    shape, about_model = model_of(found.models, found.head.name, folder)
    head = found.models.get(found.head.name)
    own = own_method(head.config) if head else ""
    kept = found.stored.get(replaces)
    before = kept.service if kept else None
    return _Considered(
        folder=folder,
        name=service_name(asked),
        replaces=replaces,
        pool=pool,
        shape=shape,
        about_model=about_model,
        tensor=asked.tensor_parallel or pool.total // asked.pipeline_parallel,
        method=quantization(asked.quantization, own, found.vllm.methods),
        port=before.port if before else free_port(found, asked.ports),
        generation=before.generation + 1 if before else 1,
    )


def _reasons(asked: ServiceWanted, found: FoundServices, it: _Considered) -> Iterable[str]:
    yield from _name(it.name, found, it.replaces)
    yield from it.about_model
    yield from _ray(found, asked)
    if it.shape:
        yield from _division(it.shape, it.tensor, asked, it.pool)
    yield from _cards(it.pool, it.tensor * asked.pipeline_parallel, found)
    yield from _vllm(asked, found, it.method)
    if it.port is None:
        first, last = asked.ports
        yield f"{found.head.name}: no free port in ENGINE_PORTS {first}-{last}"


def engine_of(asked: ServiceWanted, service: Service, folder: str, method: str) -> EngineSpec:
    return EngineSpec(
        model=folder,
        names=service.names,
        port=service.port,
        host=service.host,
        tensor_parallel=service.tensor_parallel,
        pipeline_parallel=service.pipeline_parallel,
        executor=service.executor,
        task=service.task,
        max_model_len=asked.max_model_len,
        max_num_seqs=asked.max_num_seqs,
        max_num_batched_tokens=asked.max_num_batched_tokens,
        gpu_memory_utilization=asked.gpu_memory_utilization,
        quantization=method,
        arguments=asked.arguments,
    )


def _file(
    wanted: Wanted, service: Service, engine: EngineSpec, found: FoundServices, pool: Pool
) -> EngineFile:
    line = argv(engine, found.vllm)
    if wanted.runtime != "docker":
        line = (wanted.python, *line[1:])
    return EngineFile(
        name=service.name,
        argv=line,
        environment={
            # Without it the driver would take any Ray of this machine, or start one of its own.
            "RAY_ADDRESS": f"{found.head.place.ip}:{wanted.ports.gcs}",
            # `-m` would import what lies in the folder that it happens to be started in.
            "PYTHONSAFEPATH": "1",
            # A new number is a new engine, also where nothing else changed.
            _GENERATION: str(service.generation),
        },
        url=service.url,
        canary=canary(service.task, service.names[0]),
        nodes=pool.needed_hosts(service.world),
        service=service.document(),
    )


def names_of(name: str, asked: ServiceWanted, folder: str) -> tuple[str, ...]:
    repository = (asked.model,) if "/" in asked.model.strip("/") and asked.model[0] != "/" else ()
    return tuple(dict.fromkeys((name, *repository, folder, *asked.aliases)))


def _name(name: str, found: FoundServices, replaces: str) -> Iterable[str]:
    if fault := name_fault(name):
        yield f"{name!r} cannot be a service's name: {fault}"
    elif name in found.stored and name != replaces:
        yield (
            f"a service {name} is there already: `vllmdeploy restart-service {name}` takes new"
            " settings over, `stop-service` removes it, --name gives another name"
        )


def model_of(
    models: Mapping[str, FoundModel], first: str, folder: str
) -> tuple[ModelShape | None, tuple[str, ...]]:
    """Its shape, and what keeps it from being loaded on every host. `first`: the host whose copy
    is the right one."""
    name = folder.rpartition("/")[2]
    reasons = [
        f"{host}: model {folder}: {one.problem}"
        for host, one in models.items()
        if one.problem
    ]
    head = models.get(first)
    for host, one in models.items():
        if head and not one.problem and one.digest != head.digest:
            reasons.append(f"{host}: model {folder} is another copy than on {first}")
    if reasons:
        reasons.append(f"bring it to every host with: vllmdeploy sync {name}")
    if head is None or head.problem:
        return None, tuple(reasons)
    try:
        return parse_config(head.config, where=f"{folder}/config.json"), tuple(reasons)
    except UsageError:
        # Not every model that vLLM serves is a transformer that we can count the heads of.
        return None, tuple(reasons)


def _ray(found: FoundServices, asked: ServiceWanted) -> Iterable[str]:
    head = found.head
    if asked.executor == "mp":
        yield "EXECUTOR=mp: services over several hosts without Ray are not written yet"
    if head.found.ray is None:
        yield f"{head.name}: no Ray head runs here: `vllmdeploy up` starts it"
        return
    if head.found.ray.problem:
        yield f"{head.name}: Ray does not say what it has: {head.found.ray.problem}"
        return
    there = {node.name for node in found.ray_nodes}
    missing = [one.name for one in found.members if one.name not in there]
    if missing:
        yield f"Ray does not report {', '.join(missing)}: `vllmdeploy up` mends that"


def _division(shape: ModelShape, tensor: int, asked: ServiceWanted, pool: Pool) -> Iterable[str]:
    if not tensor:
        return
    why = capacity.refusal(shape, tensor, asked.pipeline_parallel)
    if why:
        most = pool.total // asked.pipeline_parallel
        works = [
            one
            for one in range(1, most + 1)
            if not capacity.refusal(shape, one, asked.pipeline_parallel)
        ]
        instead = divisors(works, most)
        yield why + (f"; what works here: {instead}" if instead else "")


def _cards(pool: Pool, count: int, found: FoundServices) -> Iterable[str]:
    if not found.ray_nodes:
        return
    if not pool.total:
        yield "no host brings a card into Ray (on hosts without cards: ray_gpus=1 on their lines)"
    elif why := pool.lacking(count):
        yield why


def _vllm(asked: ServiceWanted, found: FoundServices, method: Quantization) -> Iterable[str]:
    if found.head.found.ray is None:
        return
    if found.vllm.problem:
        yield f"{found.head.name}: {found.vllm.problem}"
        return
    yield from taken_flags(asked.arguments)
    yield from found.vllm.unknown(free_flags(asked.arguments))
    if method.refusal:
        yield method.refusal
