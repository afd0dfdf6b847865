"""What the gateway says of itself: who it is, whether it is well, its numbers, its models."""

from __future__ import annotations

import asyncio
import time

from vllmdeploy import __version__
from vllmdeploy.gateway.api.answers import answer_json
from vllmdeploy.gateway.engine_page import Merged
from vllmdeploy.gateway.fleet import Group
from vllmdeploy.gateway.gateway import Gateway, may_use
from vllmdeploy.gateway.instance import Instance
from vllmdeploy.gateway.meters import Page
from vllmdeploy.gateway.refusal import Refusal, try_again
from vllmdeploy.gateway.visit import Visit
from vllmdeploy.routing.states import State

_STARTED = int(time.time())
_PLAIN = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
_INSTANCE = ("instance",)


async def root(gateway: Gateway, visit: Visit) -> None:
    ready, total = _counts(gateway)
    answer_json(
        visit,
        {
            "name": gateway.spec.name,
            "version": __version__,
            "state": _state(gateway, ready),
            "models": sorted(gateway.fleet.groups),
            "instances": {"ready": ready, "total": total},
        },
    )


async def health(gateway: Gateway, visit: Visit) -> None:
    ready, total = _counts(gateway)
    well = ready > 0 and not gateway.draining
    value = {
        "status": _state(gateway, ready),
        "instances": {"ready": ready, "total": total},
        "models": {name: _model(group) for name, group in sorted(gateway.fleet.groups.items())},
        "waiting_for_models": [
            {"instance": one.id, "state": one.health.state.value, "reason": one.health.reason}
            for one in gateway.fleet.instances.values()
            if not one.models
        ],
    }
    answer_json(visit, value, 200 if well else 503, () if well else try_again(2))


async def models(gateway: Gateway, visit: Visit) -> None:
    groups = sorted(gateway.fleet.by_name.items())
    data = [_card(gateway, name) for name, group in groups if may_use(visit.identity, group)]
    answer_json(visit, {"object": "list", "data": data})


async def model(gateway: Gateway, visit: Visit) -> None:
    name = visit.exchange.head.path.removeprefix("/v1/models/").replace("%2F", "/")
    if not may_use(visit.identity, gateway.fleet.group(name)):
        raise Refusal(403, f"this key may not use the model {name}")
    answer_json(visit, _card(gateway, name))


async def metrics(gateway: Gateway, visit: Visit) -> None:
    merged = Merged()
    for instance in tuple(gateway.fleet.instances.values()):
        if instance.engine_page:
            merged.add(instance.id, instance.engine_page)
            # One page is read in a millisecond; many must not be read in one go.
            await asyncio.sleep(0)
    pieces = [own_page(gateway)]
    for piece in merged.families():
        pieces.append(piece)
        await asyncio.sleep(0)
    visit.exchange.respond(200, (_PLAIN,), b"".join(pieces))


def own_page(gateway: Gateway) -> bytes:
    meters, page = gateway.meters, Page()
    prefix = "vllmdeploy_gateway"
    page.family(
        *(f"{prefix}_requests_total", "counter", "Requests answered."),
        ("route", "model", "status"),
        meters.requests.items(),
    )
    page.histogram(
        f"{prefix}_request_seconds",
        "Time to the whole answer.",
        ("route", "model"),
        meters.durations,
    )
    page.histogram(
        f"{prefix}_first_byte_seconds", "Time to the first byte.", ("model",), meters.first_bytes
    )
    page.histogram(
        f"{prefix}_queue_seconds", "Time waited for a free place.", ("model",), meters.waits
    )
    page.family(
        *(f"{prefix}_completion_tokens_total", "counter", "Tokens generated."),
        ("model",),
        meters.tokens.items(),
    )
    page.family(
        *(f"{prefix}_refused_total", "counter", "Connections refused before a request was read."),
        ("status",),
        meters.refused.items(),
    )
    _dispatch_families(gateway, page, prefix)
    _instance_families(gateway, page, prefix)
    used = gateway.ledger.used.items()
    key = ("key",)
    about = "Requests made with each key."
    page.family(
        f"{prefix}_key_requests_total", "counter", about, key, [((k,), u.requests) for k, u in used]
    )
    about = "Tokens generated for each key."
    page.family(
        f"{prefix}_key_tokens_total", "counter", about, key, [((k,), u.tokens) for k, u in used]
    )
    return page.text()


def _dispatch_families(gateway: Gateway, page: Page, prefix: str) -> None:
    retries = [((reason,), count) for reason, count in gateway.dispatcher.retries.items()]
    about = "Requests tried again on another instance, by what went wrong."
    page.family(f"{prefix}_retries_total", "counter", about, ("reason",), retries)
    about = "Streams that broke after they had begun."
    count = gateway.meters.broken_streams
    page.family(f"{prefix}_broken_streams_total", "counter", about, (), [((), count)])
    queued = [((name,), group.waiting) for name, group in gateway.fleet.groups.items()]
    about = "Requests waiting for a free place."
    page.family(f"{prefix}_queue_length", "gauge", about, ("model",), queued)


def _instance_families(gateway: Gateway, page: Page, prefix: str) -> None:
    instances = list(gateway.fleet.instances.values())
    page.family(
        *(f"{prefix}_instance_ready", "gauge", "1 while the instance is sent requests."),
        _INSTANCE,
        [((one.id,), int(one.ready)) for one in instances],
    )
    page.family(
        *(f"{prefix}_instance_state", "gauge", "1 for the state the instance is in."),
        ("instance", "state"),
        [
            ((one.id, state.value), int(one.health.state is state))
            for one in instances
            for state in State
        ],
    )
    page.family(
        *(f"{prefix}_instance_inflight", "gauge", "Requests in flight."),
        _INSTANCE,
        [((one.id,), one.load.inflight) for one in instances],
    )
    page.family(
        *(f"{prefix}_instance_requests_total", "counter", "Requests sent."),
        _INSTANCE,
        [((one.id,), one.requests) for one in instances],
    )
    page.family(
        *(f"{prefix}_instance_failures_total", "counter", "Requests that failed there, and how."),
        ("instance", "failure"),
        [((one.id, kind), n) for one in instances for kind, n in one.failures.items()],
    )


def _model(group: Group) -> dict[str, object]:
    ready = [one for one in group.members if one.ready]
    known = ready or group.members
    return {
        "instances": {"ready": len(ready), "total": len(group.members)},
        "tensor_parallel_size": max((one.spec.tensor_parallel_size for one in known), default=0)
        or None,
        "max_num_seqs": sum(one.spec.max_num_seqs for one in ready) or None,
        # Of an engine that was told its threads, those; else what the gateway lets to it at once.
        "max_workers": sum(one.spec.max_workers or one.upstream.limit for one in ready),
        "max_model_len": min(
            (one.max_model_len for one in known if one.max_model_len), default=None
        ),
        "waiting": group.waiting,
        "reasons": {
            one.id: f"{one.health.state.value}: {one.why}"
            for one in group.members
            if one.health.state is not State.READY or one.aside
        },
    }


def _card(gateway: Gateway, name: str) -> dict[str, object]:
    group = gateway.fleet.by_name[name]
    lengths = [one.max_model_len for one in group.members if one.max_model_len]
    return {
        "id": name,
        "object": "model",
        "created": _STARTED,
        "owned_by": "vllm",
        "root": group.model,
        "parent": None,
        "max_model_len": min(lengths, default=None),
    }


def _counts(gateway: Gateway) -> tuple[int, int]:
    instances = gateway.fleet.instances.values()
    return sum(_is_ready(one) for one in instances), len(instances)


def _is_ready(instance: Instance) -> bool:
    return instance.ready and bool(instance.models)


def _state(gateway: Gateway, ready: int) -> str:
    if gateway.draining:
        return "draining"
    return "ready" if ready else "no instance is ready"
