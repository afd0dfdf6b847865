"""What is asked for when instances are to be started, and what was found for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, cast

from vllmdeploy.errors import UsageError
from vllmdeploy.plan.instances import Slot
from vllmdeploy.plan.instances_mps import Sharing
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service_wanted import ServiceWanted
from vllmdeploy.tools.mps_found import Mps
from vllmdeploy.tools.vllm import Vllm
from vllmdeploy.tools.vllm_engine import EngineState
from vllmdeploy.tools.vllm_model import FoundModel
from vllmdeploy.tools.vllm_services import Service, Stored


@dataclass(frozen=True, slots=True, kw_only=True)
class InstancesWanted:
    """One `instances start`. `engine.tensor_parallel`: the cards of each; `count` None: as many
    as there is room for; `per_card`: how many share a set of cards, in the way of `sharing`;
    `hosts` empty: all of them; `ports` empty: the first free ones of `usual_ports`."""

    engine: ServiceWanted
    count: int | None = None
    per_card: int = 1
    hosts: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    usual_ports: tuple[int, ...] = ()
    sharing: Sharing | None = None

    @classmethod
    def stored(cls, kept: Mapping[str, Any]) -> InstancesWanted:
        """As `asdict` wrote it; keys of another version are left out."""
        known = {one.name for one in fields(cls)}
        given: dict[str, Any] = {key: value for key, value in kept.items() if key in known}
        for key in ("hosts", "ports", "usual_ports"):
            given[key] = tuple(given.get(key, ()))
        given["engine"] = ServiceWanted.stored(given["engine"])
        if given.get("sharing"):
            given["sharing"] = Sharing.stored(given["sharing"])
        return cls(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundInstances:
    """A fleet as instances meet it. `vllm`, `models` and `mps` are of the hosts that were asked;
    `engines` are by instance."""

    members: tuple[Member, ...]
    lead: str
    gateway_port: int = 0
    stored: Mapping[str, Stored] = field(default_factory=dict[str, Stored])
    services: tuple[Service, ...] = ()
    engines: Mapping[str, EngineState] = field(default_factory=dict[str, EngineState])
    vllm: Mapping[str, Vllm] = field(default_factory=dict[str, Vllm])
    models: Mapping[str, FoundModel] = field(default_factory=dict[str, FoundModel])
    mps: Mapping[str, Mps] = field(default_factory=dict[str, Mps])

    @property
    def instances(self) -> tuple[Service, ...]:
        return instances_of(self.stored)

    def named(self, name: str) -> tuple[Service, ...]:
        """The instances of one name, by number."""
        return tuple(one for one in self.instances if one.belongs_to == name)

    def member(self, host: str) -> Member:
        there = next((one for one in self.members if one.name == host), None)
        if there is None:
            raise UsageError(
                f"instances are stored for {host}, which is not in the fleet, or is a spare in it",
                hint=f"write {host} into worker_nodes.txt again, and stop them first",
            )
        return there


def instances_of(stored: Mapping[str, Stored]) -> tuple[Service, ...]:
    """Those that can be planned with, by name and number."""
    found = (one.service for one in stored.values() if one.service and "slot" in one.service.asked)
    return tuple(sorted(found, key=lambda one: (one.belongs_to, slot_of(one).number)))


def node_name(cluster: str, instance: str) -> str:
    return f"{cluster}-instance-{instance}"


def document(asked: InstancesWanted, slot: Slot) -> dict[str, object]:
    """What an instance's spec keeps for the next plan."""
    return {"instances": asdict(asked), "slot": asdict(slot)}


def slot_of(instance: Service) -> Slot:
    kept = dict(cast("Mapping[str, Any]", instance.asked["slot"]))
    kept["cards"] = tuple(kept["cards"])
    return Slot(**kept)


def asked_of(instance: Service) -> InstancesWanted:
    return InstancesWanted.stored(cast("Mapping[str, Any]", instance.asked["instances"]))
