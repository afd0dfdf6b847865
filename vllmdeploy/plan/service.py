"""From a wanted service and what was found to its spec, or every reason against it at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.plan import service_ranks as ranks
from vllmdeploy.plan.capacity_advice import about_room, roomiest
from vllmdeploy.plan.capacity_model import ModelShape, parse_config
from vllmdeploy.plan.service_capacity import NOWHERE, room_for
from vllmdeploy.plan.service_cards import Pool, free_ports, pool_of
from vllmdeploy.plan.service_ranks import Placement
from vllmdeploy.plan.service_reasons import Considered, reasons
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.manifest_names import name_of, place_of
from vllmdeploy.tools.vllm_engine import (
    EngineFile,
    EngineSpec,
    Rank,
    argv,
    canary,
)
from vllmdeploy.tools.vllm_measured import Conditions
from vllmdeploy.tools.vllm_model import FoundModel, own_method, quantization
from vllmdeploy.tools.vllm_services import Service

_GENERATION = "VLLMDEPLOY_GENERATION"


@dataclass(frozen=True, slots=True, kw_only=True)
class DecidedService:
    """A service with the engine file that the head's warden runs it by; `conditions`: those under
    which what it will say of its cache is worth keeping."""

    service: Service
    file: EngineFile
    conditions: Conditions | None = None
    notes: tuple[str, ...] = ()


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


def engine_name(asked: ServiceWanted) -> str:
    """The first engine is called as the service is."""
    name = service_name(asked)
    return name if asked.replica == 1 else f"{name}.{asked.replica}"


def decide_service(
    wanted: Wanted, asked: ServiceWanted, found: FoundServices, *, replaces: str = ""
) -> DecidedService:
    """`replaces`: the running service that this one takes the place of."""
    it = _consider(wanted, asked, found, replaces)
    against = tuple(reasons(asked, found, it))
    if against:
        raise PreflightRefused(against)
    service = _service(wanted, asked, found, it)
    engine = engine_of(
        asked, service, it.folder, it.method.method, rank=_rank(service, _addresses(found))
    )
    return DecidedService(
        service=service,
        file=_file(wanted, service, engine, found, it.pool),
        conditions=it.room.conditions if it.room else None,
        notes=about_room(it.room),
    )


def _service(wanted: Wanted, asked: ServiceWanted, found: FoundServices, it: Considered) -> Service:
    leader = next(iter(it.placement), found.head.name)
    members = {one.name: one for one in found.members}
    shown = {
        host: ranks.visible(wanted, members[host], cards) for host, cards in it.placement.items()
    }
    return Service(
        name=it.name,
        model=it.folder.rpartition("/")[2],
        names=names_of(service_name(asked), asked, it.folder),
        replica_of="" if asked.replica == 1 else service_name(asked),
        port=it.ports[0],
        host=asked.host if leader == found.head.name else members[leader].place.ip,
        group=found.head.found.host.group,
        tensor_parallel=it.tensor,
        pipeline_parallel=asked.pipeline_parallel,
        executor=found.head.executor,
        task=asked.task,
        max_num_seqs=asked.max_num_seqs or 0,
        generation=it.generation,
        head=found.head.name,
        placement=it.placement,
        visible={host: one for host, one in shown.items() if one},
        ranks_ports=it.ports[1:],
        asked=asdict(asked),
    )


def _addresses(found: FoundServices) -> dict[str, str]:
    return {member.name: member.place.ip for member in found.members}


def _rank(service: Service, addresses: Mapping[str, str]) -> Rank | None:
    if len(service.placement) < 2:
        return None
    master, port = addresses[service.leader], service.ranks_ports[0]
    return Rank(index=0, count=len(service.placement), master=master, port=port)


def _consider(
    wanted: Wanted, asked: ServiceWanted, found: FoundServices, replaces: str
) -> Considered:
    folder = model_folder(wanted, asked)
    pool = pool_of(found, besides=replaces)
    shape, about_model = model_of(found.models, found.head.name, folder)
    head = found.models.get(found.head.name)
    own = own_method(head.config) if head else ""
    method = quantization(asked.quantization, own, found.vllm.methods)
    kept = found.stored.get(replaces)
    before = kept.service if kept else None
    tensor = asked.tensor_parallel or pool.total // asked.pipeline_parallel // asked.replicas
    world = tensor * asked.pipeline_parallel
    without_ray = found.head.executor == "mp"
    places = tuple(ranks.placements(found, world, besides=replaces)) if without_ray else ()
    placement, room = roomiest(
        (one, room_for(asked, found, shape, tensor, method.method, one))
        for one in places or (NOWHERE,)
    )
    return Considered(
        folder=folder,
        name=engine_name(asked),
        replaces=replaces,
        pool=pool,
        shape=shape,
        about_model=about_model,
        tensor=tensor,
        method=method,
        room=room,
        placement=placement,
        ports=_ports(asked, found, placement, before),
        generation=before.generation + 1 if before else 1,
    )


def _ports(
    asked: ServiceWanted, found: FoundServices, placement: Placement, before: Service | None
) -> tuple[int, ...]:
    """Those it had, where it stays as it was."""
    leader = next(iter(placement), found.head.name)
    count = 3 if len(placement) > 1 else 1
    if before and before.leader == leader and len(before.ports) == count:
        return before.ports
    return free_ports(found, asked.ports, count=count, leader=leader)


def engine_of(
    asked: ServiceWanted,
    service: Service,
    folder: str,
    method: str,
    *,
    rank: Rank | None = None,
) -> EngineSpec:
    return EngineSpec(
        model=folder,
        names=service.names,
        port=service.port,
        host=service.host,
        tensor_parallel=service.tensor_parallel,
        pipeline_parallel=service.pipeline_parallel,
        executor=service.executor,
        rank=rank,
        task=service.task,
        max_model_len=asked.max_model_len,
        max_num_seqs=asked.max_num_seqs,
        max_num_batched_tokens=asked.max_num_batched_tokens,
        gpu_memory_utilization=asked.gpu_memory_utilization,
        quantization=method,
        drain_s=asked.drain_s,
        arguments=asked.arguments,
    )


def _file(
    wanted: Wanted, service: Service, engine: EngineSpec, found: FoundServices, pool: Pool
) -> EngineFile:
    line = argv(engine, found.vllm)
    if wanted.runtime != "docker":
        line = (wanted.python, *line[1:])
    by_ray = service.executor == "ray"
    # Without it the driver would take any Ray of this machine, or start one of its own.
    ray = {"RAY_ADDRESS": f"{found.head.place.ip}:{wanted.ports.gcs}"} if by_ray else {}
    return EngineFile(
        name=service.name,
        argv=line,
        environment={
            **ray,
            **service.visible.get(service.leader, {}),
            # `-m` would import what lies in the folder that it happens to be started in.
            "PYTHONSAFEPATH": "1",
            # A new number is a new engine, also where nothing else changed.
            _GENERATION: str(service.generation),
        },
        url=service.url,
        canary=canary(service.task, service.names[0]),
        needs_ray=by_ray,
        nodes=pool.needed_hosts(service.world) if by_ray else (),
        node="" if by_ray else service.leader,
        drain_s=wanted.drain_s,
        ranks=ranks.link(service, _addresses(found)),
        service=service.document(),
    )


def names_of(name: str, asked: ServiceWanted, folder: str) -> tuple[str, ...]:
    repository = (asked.model,) if "/" in asked.model.strip("/") and asked.model[0] != "/" else ()
    return tuple(dict.fromkeys((name, *repository, folder, *asked.aliases)))


def model_of(
    models: Mapping[str, FoundModel], first: str, folder: str
) -> tuple[ModelShape | None, tuple[str, ...]]:
    """Its shape, and what keeps it from being loaded on every host. `first`: the host whose copy
    is the right one."""
    name = folder.rpartition("/")[2]
    reasons = [
        f"{host}: model {folder}: {one.problem}" for host, one in models.items() if one.problem
    ]
    head = models.get(first)
    for host, one in models.items():
        if head and not one.problem and one.digest != head.digest:
            reasons.append(f"{host}: model {folder} is another copy than on {first}")
    if reasons and not any(one.there for one in models.values()):
        download = f"vllmdeploy model download OWNER/{name} --sync"
        reasons.append(f"none of them has it: {download}, or model sync where another host does")
    elif reasons:
        reasons.append(f"bring it to every host with: vllmdeploy model sync {name}")
    if head is None or head.problem:
        return None, tuple(reasons)
    try:
        return parse_config(head.config, where=f"{folder}/config.json"), tuple(reasons)
    except UsageError:
        # Not every model that vLLM serves is a transformer that we can count the heads of.
        return None, tuple(reasons)
