"""One upstream as it lives in the gateway: its load, its health, its connections."""

from __future__ import annotations

import ssl
from pathlib import Path

from vllmdeploy.errors import SettingsError
from vllmdeploy.gateway.address import Pinned
from vllmdeploy.gateway.spec import UpstreamSpec
from vllmdeploy.routing.health import Health
from vllmdeploy.routing.load import Load
from vllmdeploy.routing.thresholds import Thresholds
from vllmdeploy.routing.upstream import Upstream
from vllmdeploy.wire.deadlines import Deadlines
from vllmdeploy.wire.head import Field
from vllmdeploy.wire.limits import UpstreamTimes
from vllmdeploy.wire.pool import Endpoint, Pool


class Instance:
    """A candidate of the routing policies. A replaced one is another object, so that news of the
    old one cannot touch the new."""

    __slots__ = (
        *("aside", "authorization", "discovered", "engine_page", "failures", "health", "id"),
        *(
            "host",
            "load",
            "max_model_len",
            "origin",
            "pool",
            "probes",
            "requests",
            "spec",
            "upstream",
        ),
    )

    def __init__(
        self,
        spec: UpstreamSpec,
        pinned: Pinned,
        deadlines: Deadlines,
        *,
        now: float,
        thresholds: Thresholds,
        origin: str,
    ) -> None:
        self.id = spec.id
        self.spec = spec
        self.origin = origin
        self.upstream = _upstream(spec, pinned)
        self.load = Load()
        self.health = Health(now, thresholds, generation=spec.generation)
        address = pinned.address
        tls = ssl.create_default_context() if address.tls else None
        endpoint = Endpoint(pinned.ip, address.port, address.host, tls)
        self.pool = Pool(endpoint, deadlines, _times(thresholds))
        self.probes = Pool(endpoint, deadlines, _times(thresholds))
        host = f"[{address.host}]" if ":" in address.host else address.host
        self.host = f"{host}:{address.port}"
        self.authorization = _authorization(spec.key_file)
        self.discovered: tuple[str, ...] = ()
        self.max_model_len = 0
        self.engine_page = b""
        self.requests = 0
        self.aside = 0  # by how many workers, where it is they who serve
        self.failures: dict[str, int] = {}

    @property
    def ready(self) -> bool:
        """Here and, where there are workers, with each of them: any may get the next request."""
        return self.health.serving and not self.aside

    @property
    def why(self) -> str:
        """The reason for its state; what workers saw on connections of theirs is added to it."""
        reason = self.health.reason
        if not self.aside or not self.health.serving:
            return reason
        return f"{reason}{'; ' if reason else ''}not used by {self.aside} of the workers now"

    @property
    def models(self) -> tuple[str, ...]:
        return self.upstream.models or self.discovered

    @property
    def model(self) -> str:
        """The name it goes by, first of all it answers to."""
        return self.models[0] if self.models else ""

    def change(self, spec: UpstreamSpec) -> None:
        """Takes over what may change without a new instance."""
        pinned = Pinned(self.upstream.address, "")
        self.spec = spec
        self.upstream = _upstream(spec, pinned)
        self.authorization = _authorization(spec.key_file)

    def same_as(self, spec: UpstreamSpec) -> bool:
        return (self.spec.url, self.spec.generation) == (spec.url, spec.generation)


def _upstream(spec: UpstreamSpec, pinned: Pinned) -> Upstream:
    return Upstream(
        spec.id,
        pinned.address,
        spec.models,
        weight=spec.weight,
        cost=spec.cost,
        limit=spec.limit,
        generation=spec.generation,
    )


def _times(thresholds: Thresholds) -> UpstreamTimes:
    return UpstreamTimes(
        connect_s=thresholds.connect_timeout_s,
        first_byte_s=thresholds.first_byte_timeout_s,
        idle_s=thresholds.idle_timeout_s,
        total_s=thresholds.total_timeout_s,
    )


def _authorization(key_file: str) -> tuple[Field, ...]:
    """The upstream's own key; a client's key is never sent to an upstream."""
    if not key_file:
        return ()
    try:
        key = Path(key_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError([f"{key_file}: cannot be read: {error}"]) from error
    if not key.isascii() or not key.isprintable() or not key:
        raise SettingsError([f"{key_file}: the key is not one line of printable characters"])
    return ((b"authorization", b"Bearer " + key.encode("ascii")),)
