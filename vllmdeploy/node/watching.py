"""Asks a running child whether it is ready, and an engine whether it still generates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vllmdeploy.node.health import (
    Patience,
    Seen,
    Watch,
    judge,
    parse_metrics,
    wants_canary,
)
from vllmdeploy.node.probe import ask, tcp_problem
from vllmdeploy.node.spec import HttpProbe, LineReady, Readiness, TcpReady
from vllmdeploy.node.table import Event, Ready, Unhealthy

_TCP_EVERY_S = 0.25
_HTTP_EVERY_S = 2.0
_HTTP_START_EVERY_S = 0.5
_TCP_LIMIT_S = 2.0
_HEALTH_LIMIT_S = 5.0
_CANARY_LIMIT_S = 20.0

Tell = Callable[[Event], None]


async def watch(ready: Readiness, tell: Tell, up: Callable[[], bool]) -> None:
    match ready:
        case None:
            tell(Ready())
        case LineReady():
            return  # whoever reads its output sees the line
        case TcpReady(host, port):
            while up():
                if not await tcp_problem(host, port, limit_s=_TCP_LIMIT_S):
                    tell(Ready())
                    return
                await asyncio.sleep(_TCP_EVERY_S)
        case HttpProbe():
            await _watch_engine(ready, tell, up)


async def _watch_engine(probe: HttpProbe, tell: Tell, up: Callable[[], bool]) -> None:
    loop = asyncio.get_running_loop()
    watch = Watch()
    while up():
        was_ready = watch.ready
        seen = await _look(probe, asked=wants_canary(watch, loop.time()), counts=was_ready)
        watch, verdict = judge(watch, seen, loop.time(), Patience())
        if verdict.ready and not was_ready:
            tell(Ready())
        if verdict.hung:
            tell(Unhealthy(verdict.hung))
            return
        await asyncio.sleep(_HTTP_EVERY_S if watch.ready else _HTTP_START_EVERY_S)


async def _look(probe: HttpProbe, *, asked: bool, counts: bool) -> Seen:
    """`counts`: its counters too, of which nothing is to be seen before it is ready."""
    health = await ask(probe.health_url, limit_s=_HEALTH_LIMIT_S)
    running = tokens = None
    if probe.metrics_url and counts:
        metrics = await ask(probe.metrics_url, limit_s=_HEALTH_LIMIT_S)
        if metrics.status == 200:
            running, tokens = parse_metrics(metrics.body)
    canary = None
    if probe.canary_url and asked and health.status == 200:
        canary = await ask(probe.canary_url, limit_s=_CANARY_LIMIT_S, body=probe.canary_body)
    return Seen(
        health=health.status,
        canary=None if canary is None else canary.status,
        running=running,
        tokens=tokens,
        detail=(canary.detail if canary else "") or health.detail,
    )
