"""Several engines of one service: each decided beside those before it, or all refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan.service import DecidedService, decide_service
from vllmdeploy.plan.service_cards import pool_of
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.vllm_services import Service, Stored


def decide_replicas(
    wanted: Wanted, asked: ServiceWanted, found: FoundServices
) -> tuple[DecidedService, ...]:
    """All engines of a new service, in the order of their numbers."""
    reasons = list(_reasons(asked, found))
    decided: list[DecidedService] = []
    for replica in range(1, asked.replicas + 1):
        try:
            one = decide_service(wanted, replace(asked, replica=replica), found)
        except PreflightRefused as refused:
            reasons += refused.reasons
            break
        decided.append(one)
        found = beside(found, one)
    if reasons:
        raise PreflightRefused(tuple(dict.fromkeys(reasons)))
    return tuple(decided)


def beside(found: FoundServices, decided: DecidedService) -> FoundServices:
    """As if it were stored already: its cards are promised and its ports taken."""
    service = decided.service
    one = Stored(file=f"{service.name}.json", content=decided.file.content(), service=service)
    return replace(found, stored={**found.stored, service.name: one})


def engines_of(found: FoundServices, name: str) -> tuple[Service, ...]:
    """A service's engines, its first first."""
    mine = (one for one in found.services if one.belongs_to == name)
    return tuple(sorted(mine, key=replica_of))


def replica_of(service: Service) -> int:
    number = service.asked.get("replica")
    return number if isinstance(number, int) else 1


def free_replica(found: FoundServices, name: str) -> int:
    """The lowest number that no engine of the service has."""
    taken = {replica_of(one) for one in engines_of(found, name)}
    return next(number for number in range(1, len(taken) + 2) if number not in taken)


def _reasons(asked: ServiceWanted, found: FoundServices) -> Iterable[str]:
    """What only shows when all are counted."""
    pool = pool_of(found)
    pipeline = asked.pipeline_parallel
    tensor = asked.tensor_parallel or pool.total // pipeline // asked.replicas
    if asked.replicas > 1 and (why := pool.lacking(tensor * pipeline * asked.replicas)):
        yield f"{asked.replicas} replicas of {tensor * pipeline} cards: {why}"
    drivers = [one for one in found.services if one.executor == "ray"]
    cards = dict(pool.by_host).get(found.head.name, 0)
    count = len(drivers) + asked.replicas
    bound = found.head.executor == "ray" and found.ray_nodes and not found.vllm.drives_anywhere
    if bound and not found.vllm.problem and count > max(cards, 1):
        yield (
            f"vLLM {found.vllm.version} needs a card of {found.head.name} for every service over"
            f" Ray: {count} services there, {cards} cards"
        )
