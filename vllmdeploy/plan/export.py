"""What is exported, whatever runs it there: decided instances and their gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vllmdeploy.core.layout import PACKAGE_FILE
from vllmdeploy.plan.instances_decide import Instances
from vllmdeploy.plan.instances_node import Instance
from vllmdeploy.plan.node import QUIET
from vllmdeploy.plan.service_gateway_node import GatewayWanted, fleet_file
from vllmdeploy.plan.wanted import Wanted

_GENERATION = "VLLMDEPLOY_GENERATION"
_LOOPBACKS = "127.0.0.0/8,::1/128"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What is written: instances, the host of the gateway, and the program that the gateway is."""

    wanted: Wanted
    instances: Instances
    gateway: GatewayWanted
    lead: str
    package: bytes = field(repr=False)

    @property
    def cluster(self) -> str:
        return self.wanted.cluster

    @property
    def etc(self) -> str:
        return f"/etc/{self.cluster}"

    @property
    def by_host(self) -> Mapping[str, list[Instance]]:
        """The lead is one of them, instances or not: it has the gateway."""
        found: dict[str, list[Instance]] = {self.lead: []}
        for one in self.instances.of:
            found.setdefault(one.slot.host, []).append(one)
        return found

    def beside(self, host: str) -> Mapping[str, bytes]:
        """What the gateway is started with, on its own host."""
        if host != self.lead:
            return {}
        fleet = fleet_file(self.gateway, [one.service for one in self.instances.of])
        return {"fleet.json": fleet, PACKAGE_FILE: self.package}


def gateway_argv(exported: Exported, *, python: str, files: str, state: str) -> tuple[str, ...]:
    gateway = exported.gateway
    listen = f"[{gateway.listen}]" if ":" in gateway.listen else gateway.listen
    allow = (*gateway.allow, _LOOPBACKS) if gateway.allow else ()
    keys = ("--auth", "none") if gateway.keyless else ("--api-keys-file", f"{files}/api_keys")
    return (
        *(python, "-m", "vllmdeploy.gateway", "--config", f"{files}/fleet.json"),
        *("--state", f"{state}/state.json", "--files", f"{state}/files"),
        *("--listen", f"{listen}:{gateway.port}", "--name", exported.cluster),
        *(*keys, "--admin-key-file", f"{files}/admin_key"),
        *(("--allow", ",".join(allow)) if allow else ()),
        *("--batch-size", str(gateway.batch_size)),
    )


def environment_of(wanted: Wanted, one: Instance) -> dict[str, str]:
    own = {key: value for key, value in one.file.environment.items() if key != _GENERATION}
    return {**own, **QUIET, **wanted.environment}
