"""What passes through the gateway, and the engines of a service as one line of `status`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.fanout import each
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.service_gateway_node import GatewayWanted, gateway_name
from vllmdeploy.plan.service_wanted import inside
from vllmdeploy.tools import gateway_page, http_page
from vllmdeploy.tools.gateway_page import Page
from vllmdeploy.workflows.session import Session
from vllmdeploy.workflows.status import ServiceStatus

_READY = "ready"


@dataclass(frozen=True, slots=True)
class Traffic:
    """The gateway's numbers now, and a second before."""

    before: Page = field(default_factory=Page)
    now: Page = field(default_factory=Page)
    seconds: float = 0.0

    def requests_per_s(self, model: str) -> float | None:
        return self._rate(self.before.model(model).requests, self.now.model(model).requests)

    def tokens_per_s(self, model: str) -> float | None:
        return self._rate(self.before.model(model).tokens, self.now.model(model).tokens)

    def _rate(self, before: float, now: float) -> float | None:
        """A gateway that was started anew counts from 0."""
        return max(0.0, now - before) / self.seconds if self.seconds else None


def traffic(session: Session, hosts: Sequence[FoundHost]) -> Traffic:
    """What the gateways on these hosts say, taken together; nothing where none answers."""
    wanted, settings = session.wanted, session.settings
    gateway = GatewayWanted(listen=settings.api_host, port=settings.api_port)
    argv = http_page.twice(f"{gateway.address}/metrics")
    command = inside(wanted, gateway_name(wanted), *argv).within(15)

    def ask_host(host: FoundHost) -> Traffic:
        shell = session.shells[host.host.name]
        return ask_one(shell, Fact("traffic", command, read), host.access)

    answers = each(hosts, ask_host)
    return together([one for one in answers if isinstance(one, Traffic) and one.seconds])


def together(several: Sequence[Traffic]) -> Traffic:
    if not several:
        return Traffic()
    before = [sample for one in several for sample in one.before.samples]
    now = [sample for one in several for sample in one.now.samples]
    seconds = sum(one.seconds for one in several) / len(several)
    return Traffic(Page(tuple(before)), Page(tuple(now)), seconds)


def read(result: Result) -> Traffic:
    try:
        first, second, seconds = json.loads(result.stdout)
    except (ValueError, TypeError):
        return Traffic()
    before, now = gateway_page.parse(str(first)), gateway_page.parse(str(second))
    if before is None or now is None or not isinstance(seconds, (int, float)):
        return Traffic()
    return Traffic(before, now, float(seconds))


def one_per_service(
    engines: Iterable[tuple[str, ServiceStatus]], seen: Traffic
) -> tuple[ServiceStatus, ...]:
    """`engines`: each with the service that it belongs to."""
    services: dict[str, list[ServiceStatus]] = {}
    for name, engine in engines:
        services.setdefault(name, []).append(_as_gateway_has_it(engine, seen))
    return tuple(_merged(name, group, seen) for name, group in services.items())


def _as_gateway_has_it(engine: ServiceStatus, seen: Traffic) -> ServiceStatus:
    """An engine that its warden finds well and the gateway does not is sent nothing."""
    found = seen.now.instance(engine.service)
    if engine.state != _READY or found.ready or not found.state:
        return engine
    return replace(engine, state=found.state, why=f"the gateway finds it {found.state}")


def _merged(name: str, engines: Sequence[ServiceStatus], seen: Traffic) -> ServiceStatus:
    ready = [one for one in engines if one.state == _READY]
    ill = [one for one in engines if one.state != _READY]
    worst = ill[0] if ill else engines[0]
    several = len(engines) > 1 or engines[0].service != name
    words = (f"{one.service}: {one.state}{f' ({one.why})' if one.why else ''}" for one in ill)
    return replace(
        worst,
        service=name,
        state="degraded" if ready and ill else worst.state,
        why="; ".join(words) if several else worst.why,
        replicas=len(engines),
        ready=len(ready),
        since=max(one.since for one in engines),
        restarts=sum(one.restarts for one in engines),
        running=_sum(one.running for one in engines),
        waiting=_sum(one.waiting for one in engines),
        cache=max((one.cache for one in engines if one.cache is not None), default=None),
        requests_per_s=seen.requests_per_s(name),
        tokens_per_s=seen.tokens_per_s(name),
        engines={one.service: _words(one) for one in engines},
        placement=dict(sum((Counter(one.placement) for one in engines), Counter[str]())),
    )


def _words(engine: ServiceStatus) -> str:
    return f"{engine.state}: {engine.why}" if engine.why else engine.state


def _sum(values: Iterable[int | None]) -> int | None:
    known = [one for one in values if one is not None]
    return sum(known) if known else None
