"""Every reason against a service, from what is wanted and what was found; none is held back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vllmdeploy.plan import capacity
from vllmdeploy.plan import service_ranks as ranks
from vllmdeploy.plan.capacity_advice import no_room
from vllmdeploy.plan.capacity_model import ModelShape
from vllmdeploy.plan.service_capacity import Room
from vllmdeploy.plan.service_cards import Pool, divisors
from vllmdeploy.plan.service_ranks import Placement
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.tools.vllm_engine import free_flags, taken_flags
from vllmdeploy.tools.vllm_model import Quantization
from vllmdeploy.tools.vllm_services import name_fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """All that follows from what is wanted and what was found, before anything is refused."""

    folder: str
    name: str
    replaces: str
    pool: Pool
    shape: ModelShape | None
    about_model: tuple[str, ...]
    tensor: int
    method: Quantization
    room: Room | None
    placement: Placement
    ports: tuple[int, ...]
    generation: int

    @property
    def ports_needed(self) -> int:
        """Its own, and two more where ranks meet."""
        return 3 if len(self.placement) > 1 else 1


def reasons(asked: ServiceWanted, found: FoundServices, it: Considered) -> Iterable[str]:
    yield from _name(it.name, found, it.replaces)
    yield from it.about_model
    if found.head.executor == "ray":
        yield from _ray(found)
    else:
        world = it.tensor * asked.pipeline_parallel
        yield from ranks.refusals(found, it.placement, world, besides=it.replaces)
    if it.shape:
        yield from _division(it.shape, it.tensor, asked, it.pool)
    if asked.pipeline_parallel > 1 and found.head.accelerator.name == "cpu":
        # Its model runner there never makes the buffers that stages hand over, and asserts.
        yield "vLLM on processors has no pipeline stages: leave --pp out, TP spans hosts there"
    yield from _cards(it.pool, it.tensor * asked.pipeline_parallel, found)
    if it.room and it.tensor * asked.pipeline_parallel <= it.pool.total:
        yield from no_room(it.room)
    yield from _vllm(asked, found, it.method)
    if len(it.ports) < it.ports_needed:
        first, last = asked.ports
        leader = next(iter(it.placement), found.head.name)
        lacking = "no free port" if it.ports_needed == 1 else f"no {it.ports_needed} free ports"
        yield f"{leader}: {lacking} in ENGINE_PORTS {first}-{last}"


def _name(name: str, found: FoundServices, replaces: str) -> Iterable[str]:
    if fault := name_fault(name):
        yield f"{name!r} cannot be a service's name: {fault}"
    elif name in found.stored and name != replaces:
        yield (
            f"a service {name} is there already: `vllmdeploy restart-service {name}` takes new"
            " settings over, `stop-service` removes it, --name gives another name"
        )


def _ray(found: FoundServices) -> Iterable[str]:
    head = found.head
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
    if not found.ray_nodes and found.head.executor == "ray":
        return
    if not pool.total:
        yield "no host brings a card into Ray (on hosts without cards: ray_gpus=1 on their lines)"
    elif why := pool.lacking(count):
        yield why


def _vllm(asked: ServiceWanted, found: FoundServices, method: Quantization) -> Iterable[str]:
    if found.head.found.ray is None and found.head.executor == "ray":
        return
    if found.vllm.problem:
        yield f"{found.head.name}: {found.vllm.problem}"
        return
    yield from taken_flags(asked.arguments)
    yield from found.vllm.unknown(free_flags(asked.arguments))
    if method.refusal:
        yield method.refusal
