"""The control plane's own routes: which instances there are, and how requests find them."""

from __future__ import annotations

from vllmdeploy.errors import VllmdeployError
from vllmdeploy.gateway.api.answers import answer_json, body_object
from vllmdeploy.gateway.fleet_file import upstream
from vllmdeploy.gateway.gateway import Gateway
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.gateway.journal import say
from vllmdeploy.gateway.kept import Ways
from vllmdeploy.gateway.refusal import Refusal
from vllmdeploy.gateway.visit import Visit

_INSTANCES = "/admin/instances/"


async def list_instances(gateway: Gateway, visit: Visit) -> None:
    answer_json(
        visit,
        {"instances": [describe(one) for one in gateway.fleet.instances.values()]},
    )


async def add_instance(gateway: Gateway, visit: Visit) -> None:
    problems: list[str] = []
    body = body_object(visit)
    if "key_file" in body:
        # Over the network this would be a way to have any file of the gateway's host sent away.
        raise Refusal(400, "key_file can be given in the gateway's own file only")
    spec = upstream(body, "the instance", problems)
    if spec is None:
        raise Refusal(400, "; ".join(problems))
    known = gateway.fleet.instances.get(spec.id)
    if known is not None and known.origin == "file":
        message = f"{spec.id} comes from the gateway's file; change it there"
        raise Refusal(409, message)
    try:
        instance, warning = await gateway.steering.add(spec)
    except VllmdeployError as error:
        raise Refusal(400, str(error)) from error
    answer_json(visit, _warned(describe(instance), warning), 201)


async def remove_instance(gateway: Gateway, visit: Visit) -> None:
    instance = _named(gateway, visit, "")
    warning = await gateway.steering.remove(instance)
    answer_json(visit, _warned(describe(instance), warning))


async def drain(gateway: Gateway, visit: Visit) -> None:
    instance = _named(gateway, visit, "/drain")
    warning = await gateway.steering.drain(instance)
    answer_json(visit, _warned(describe(instance), warning))


async def resume(gateway: Gateway, visit: Visit) -> None:
    instance = _named(gateway, visit, "/resume")
    warning = await gateway.steering.resume(instance)
    answer_json(visit, _warned(describe(instance), warning))


async def get_policy(gateway: Gateway, visit: Visit) -> None:
    answer_json(visit, _ways(gateway))


async def put_policy(gateway: Gateway, visit: Visit) -> None:
    now = _ways(gateway)
    for name, value in body_object(visit).items():
        if name not in now or not isinstance(value, str):
            known = ", ".join(now)
            raise Refusal(400, f"{name!r} is not known or not a text; known: {known}")
        now[name] = value
    try:
        warning = await gateway.steering.set_ways(Ways(**now))
    except VllmdeployError as error:
        raise Refusal(400, str(error)) from error
    say("policy changed", **now)
    answer_json(visit, _warned(dict(_ways(gateway)), warning))


def _ways(gateway: Gateway) -> dict[str, str]:
    fleet = gateway.fleet
    return Ways(fleet.policy, fleet.scheduling, fleet.default_model)._asdict()


def _warned(value: dict[str, object], warning: str) -> dict[str, object]:
    return {**value, "warning": warning} if warning else value


def describe(instance: Instance) -> dict[str, object]:
    health, load, spec = instance.health, instance.load, instance.spec
    return {
        "id": instance.id,
        "url": spec.url,
        "models": list(instance.models),
        "origin": instance.origin,
        "generation": spec.generation,
        "weight": spec.weight,
        "cost": spec.cost,
        "limit": spec.limit,
        "state": health.state.value,
        "reason": instance.why,
        "inflight": load.inflight,
        "running": load.observed.running,
        "waiting": load.observed.waiting,
        "kv_usage": round(load.observed.kv_usage, 4),
        "prefix_hit_rate": round(load.observed.prefix_hits / load.observed.prefix_queries, 4)
        if load.observed.prefix_queries
        else None,
        "generated_tokens": load.observed.generated_tokens,
        "first_byte_ms": round(load.first_byte_s * 1000, 1),
        "latency_ms": round(load.latency_s * 1000, 1),
        "requests": instance.requests,
        "failures": instance.failures,
    }


def _named(gateway: Gateway, visit: Visit, verb: str) -> Instance:
    name = visit.exchange.head.path.removeprefix(_INSTANCES).removesuffix(verb)
    found = gateway.fleet.instances.get(name.replace("%3A", ":"))
    if found is None:
        raise Refusal(404, f"there is no instance {name!r}", code="unknown_instance")
    return found
