"""All gateways of a fleet as one: each is told the same, and one not wanted any more goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from vllmdeploy.accelerators import registry
from vllmdeploy.plan import images, preflight
from vllmdeploy.plan.cards import RayShare
from vllmdeploy.plan.group import GroupPlan
from vllmdeploy.plan.network import choose
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.service_gateway import Offering
from vllmdeploy.plan.service_gateway_node import ROLE, gateway_name
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.vllm_services import Service


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateways:
    """`of`: those that are wanted. `keeper`: the head where it has none of them: it keeps the keys
    all the same. `retired`: gateways on hosts that are to have none."""

    of: tuple[Offering, ...]
    keeper: Offering | None = None
    retired: tuple[tuple[Ground, FoundNode], ...] = ()

    @property
    def name(self) -> str:
        return self.of[0].name

    @property
    def running(self) -> tuple[Offering, ...]:
        return tuple(one for one in self.of if one.runs)

    def routing(self, instances: tuple[Service, ...], *, anew: bool = False) -> Gateways:
        """The same for these engines outside Ray; `anew`: whatever their files say by now."""
        changed = (
            replace(one, instances=instances, fleet="" if anew else one.fleet) for one in self.of
        )
        return replace(self, of=tuple(changed))

    def route(
        self, services: Sequence[Service], cause: str, needs: tuple[str, ...]
    ) -> tuple[str, ...]:
        return _all(one.route(services, cause, needs) for one in self.of)

    def withdraw(
        self, service: Service, others: Sequence[Service], needs: tuple[str, ...] = ()
    ) -> tuple[str, ...]:
        return tuple(one.withdraw(service, others, needs) for one in self.of)

    def tell(
        self,
        services: Sequence[Service],
        verb: str,
        subject: str,
        cause: str,
        needs: tuple[str, ...],
        *,
        draining: str = "",
    ) -> tuple[str, ...]:
        return tuple(
            one.tell(services, verb, subject, cause, needs, draining=draining) for one in self.of
        )

    def up(
        self,
        services: Sequence[Service],
        cause: str,
        needs: tuple[str, ...],
        *,
        told: tuple[str, ...] = (),
    ) -> None:
        needs = (*needs, *self._kept())
        self._retire(_all(one.up(services, cause, needs, told=told) for one in self.of))

    def take_back(self, service: str, others: Sequence[Service]) -> None:
        """Those that were told of a service before it was up, which it never was."""
        for one in (each for each in self.of if each.runs):
            one.tell(others, "withdraw", f"{service} from {one.name}", "it did not start", ())

    def up_at_once(
        self,
        services: Sequence[Service],
        cause: str,
        *,
        needs: tuple[str, ...],
        then: Sequence[Service],
        after: tuple[str, ...],
    ) -> None:
        needs = (*needs, *self._kept())
        ready = (
            one.up_at_once(services, cause, needs=needs, then=then, after=after) for one in self.of
        )
        self._retire(_all(ready))

    def restore(
        self,
        services: Sequence[Service],
        needs: tuple[str, ...],
        *,
        then: Sequence[Service] = (),
        after: tuple[str, ...] = (),
        patient: bool = True,
    ) -> None:
        needs = (*needs, *self._kept())
        restored = (
            one.restore(services, needs, then=then, after=after, patient=patient) for one in self.of
        )
        self._retire(_all(restored))

    def _kept(self) -> tuple[str, ...]:
        return self.keeper.keep_keys() if self.keeper else ()

    def _retire(self, after: tuple[str, ...]) -> None:
        """They answer until the others do."""
        for ground, node in self.retired:
            needs = after
            commands = ground.supervisor.remove(node, ground.head.layout)
            for verb, command in zip(("stop", "remove"), commands, strict=False):
                cause = f"{ground.head.name} is not in GATEWAY_HOSTS"
                action = ground.run(command)
                needs = (ground.add(verb, node.name, cause, action, needs, destructive=True),)


def _all(keys: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for some in keys for key in some))


def front(found: FoundHost) -> Member:
    """A host with a gateway and nothing else, as a place for steps."""
    place = choose([found]).places[found.host.name]
    return Member(
        found=found,
        accelerator=registry.named(found.cards.vendor),
        share=RayShare(),
        place=place,
        head=place,
        token=False,
        executor="mp",
    )


def refusals(wanted: Wanted, fronts: Iterable[FoundHost]) -> tuple[str, ...]:
    """Why these hosts cannot have a gateway; cards and Ray are no matter."""
    return tuple(reason for found in fronts for reason in _of_front(wanted, found))


def _of_front(wanted: Wanted, found: FoundHost) -> Iterable[str]:
    name = found.host.name
    yield from preflight.of_host(wanted, found)
    if wanted.runtime != "docker":
        yield from images.of_contents(f"{name}: {wanted.python}", found, "mp")
    elif not found.image_name:
        yield f"{name}: it has no cards to choose an image by: set IMAGE, or IMAGE_GATEWAY for it"
    else:
        yield from images.of_image(found, "mp")
    if any(one.name == gateway_name(wanted) for one in found.strangers(wanted.cluster)):
        yield (
            f"{name}: a container named {gateway_name(wanted)} is there already and is not ours:"
            " rename it, or choose another CLUSTER_NAME"
        )


def fronts_alone(wanted: Wanted, fronts: Sequence[FoundHost]) -> GroupPlan:
    """These hosts as a group: they want the same image, and no host with cards has part in it."""
    return GroupPlan(tuple(map(front, fronts)), refusals=refusals(wanted, fronts))


def gateway_of(wanted: Wanted, found: FoundHost) -> FoundNode | None:
    ours = found.ours(wanted.cluster)
    return next((one for one in ours if one.role == ROLE), None)
