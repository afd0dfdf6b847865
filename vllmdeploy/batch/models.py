"""Which model rows are for when nobody said: the only one that is served."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import cast

from vllmdeploy.batch.answers import Verdict, judge
from vllmdeploy.batch.limits import outage_delay
from vllmdeploy.batch.strictjson import NotStrictJson, load_object
from vllmdeploy.batch.transport import CallFailed, Transport
from vllmdeploy.errors import NotHealthy, UsageError
from vllmdeploy.routing.upstream import Upstream

_PATH = "/v1/models"


class NoSingleModel(UsageError, ValueError):
    """Several models are served, or none; a ValueError too, as Python callers expect."""


async def only_model(
    upstreams: Sequence[Upstream],
    transport: Transport,
    *,
    say: Callable[[str], None],
    give_up_after_s: float | None,
    chance: random.Random,
) -> str:
    """Waits for an instance that answers, and says what it waits for."""
    loop = asyncio.get_running_loop()
    began, failures, said = loop.time(), 0, ""
    while True:
        served, reasons = await _served(upstreams, transport)
        if served:
            break
        words = "; ".join(reasons)
        if give_up_after_s is not None and loop.time() - began >= give_up_after_s:
            raise NotHealthy(
                f"no model list in {give_up_after_s:g} s: {words}", hint="see to the instances"
            )
        if words != said:
            say(f"waiting for the list of models, which --model makes needless: {words}")
        said = words
        await asyncio.sleep(outage_delay(failures, chance))
        failures += 1
    if len(served) > 1:
        raise NoSingleModel(
            f"no model is given, and {len(served)} are served: {', '.join(sorted(served))}",
            hint="name one with --model (model= in Python)",
        )
    return served.pop()


async def _served(
    upstreams: Sequence[Upstream], transport: Transport
) -> tuple[set[str], list[str]]:
    answers = await asyncio.gather(*(_models_of(upstream, transport) for upstream in upstreams))
    served: set[str] = set()
    for models, _ in answers:
        served |= models
    return served, [reason for _, reason in answers if reason]


async def _models_of(upstream: Upstream, transport: Transport) -> tuple[set[str], str]:
    name = str(upstream.address)
    try:
        reply = await transport.get(upstream.address, _PATH)
    except CallFailed as failure:
        return set(), f"{name}: {failure.message}"
    if reply.status != 200:
        answer = judge(_PATH, reply)
        if answer.verdict in (Verdict.STOP, Verdict.REJECTED):
            raise UsageError(
                f"{name}{_PATH}: {answer.message}",
                hint="check the key (--api-key-file) and the address, or give --model",
            )
        return set(), f"{name}: {answer.message}"
    try:
        models = cast("list[dict[str, object]]", load_object(reply.body)["data"])
        # An alias points to its model with `root`, and is not a second one.
        roots = {str(model.get("root") or model["id"]): str(model["id"]) for model in models[::-1]}
    except KeyError as error:
        return set(), f"{name}: its list of models cannot be read: it has no {error}"
    except (NotStrictJson, TypeError, AttributeError) as error:
        return set(), f"{name}: its list of models cannot be read: {error}"
    return set(roots.values()), "" if roots else f"{name}: serves no model yet"
