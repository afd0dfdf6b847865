"""Look at all hosts at once: few questions to each, and nothing decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from vllmdeploy.accelerators import registry
from vllmdeploy.core.card import CardReport
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.host import Host
from vllmdeploy.core.layout import PACKAGE_FILE
from vllmdeploy.effects.ask import ask, ask_one, decided
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import VllmdeployError
from vllmdeploy.plan.network import AUTO
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.supervise import Supervisor
from vllmdeploy.plan.wanted import Wanted, WantedGroup
from vllmdeploy.tools import (
    access,
    docker,
    files,
    image_probe,
    images,
    network,
    ray,
    system,
    warden,
)

T = TypeVar("T")

# A whole fleet: a host that does not answer for long must not begin to be silent late.
_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Looking:
    """What to look for, and how closely: a plan needs more than a status does."""

    wanted: Wanted
    supervisor: Supervisor
    sudo: access.Sudo = "auto"
    ssh_port: int = 22
    for_plan: bool = True
    cards: bool = True


def observe(
    hosts: Sequence[Host], shells: Mapping[str, Shell], looking: Looking
) -> dict[str, FoundHost | VllmdeployError]:
    """Every host, or why it could not be looked at; one bad host delays no other."""
    answers = each(hosts, lambda host: _look(host, shells[host.name], looking), at_once=_AT_ONCE)
    found = dict(zip((host.name for host in hosts), answers, strict=True))
    if looking.for_plan:
        found.update(_reached(found, shells, looking))
    return found


def _look(host: Host, shell: Shell, looking: Looking) -> FoundHost:
    wanted = looking.wanted
    rights, presence = ask(shell, (access.rights(wanted.cluster, looking.sudo), registry.PRESENCE))
    way = decided(shell, wanted.cluster, looking.sudo, rights)
    group = wanted.groups[host.group]
    choice = registry.choose(presence, wanted=host.accelerator or group.accelerator)
    start = FoundHost(
        host=host,
        access=way,
        cards=registry.completed(CardReport(vendor=choice.vendor), choice),
        image_name=group.image or registry.named(choice.vendor).default_image,
    )
    found = _first_look(start, shell, looking, choice)
    return _second_look(found, shell, looking)


class _Questions:
    """Facts gathered under names, asked in one round trip."""

    def __init__(self) -> None:
        self._facts: dict[str, Fact[Any]] = {}

    def add(self, name: str, fact: Fact[Any], *, wanted: bool = True) -> None:
        if wanted:
            self._facts[name] = fact

    def asked(self, shell: Shell, way: access.Access) -> dict[str, Any]:
        if not self._facts:
            return {}
        return dict(zip(self._facts, ask(shell, list(self._facts.values()), way), strict=True))


def _first_look(
    found: FoundHost, shell: Shell, looking: Looking, choice: registry.Choice
) -> FoundHost:
    layout, wanted = found.access.layout, looking.wanted
    in_docker = wanted.runtime == "docker"
    questions = _Questions()
    questions.add("system", system.system(layout.root))
    questions.add("links", network.LINKS)
    vendor = registry.named(found.cards.vendor)
    questions.add("cards", vendor.cards, wanted=looking.cards)
    questions.add("engine", docker.ENGINE, wanted=in_docker)
    questions.add("containers", docker.CONTAINERS, wanted=in_docker)
    questions.add("supervised", looking.supervisor.found(layout), wanted=not in_docker)
    questions.add("wardens", warden.statuses(layout.runs))
    image = found.image_name
    questions.add("image", images.image(image), wanted=in_docker and bool(image))
    questions.add("listeners", system.LISTENERS, wanted=looking.for_plan)
    questions.add("firewall", system.FIREWALL, wanted=looking.for_plan)
    questions.add("packages", files.holding(layout.packages, PACKAGE_FILE))
    questions.add("sync", files.listing(layout.sync))
    questions.add("secrets", files.digests(layout.secrets), wanted=looking.for_plan)
    said = questions.asked(shell, found.access)
    supervised = cast("tuple[FoundNode, ...]", said.pop("supervised", ()))
    ours = tuple(node for node in supervised if node.cluster in ("", wanted.cluster))
    listed: docker.Containers = said.pop("containers", docker.Containers())
    held: images.Held = said.pop("image", images.Held())
    if "cards" in said:
        said["cards"] = registry.completed(cast("CardReport", said["cards"]), choice)
    looked = replace(found, **said, supervised=ours, containers=listed.found, image=held.image)
    problem = listed.problem or held.problem
    if problem and not looked.engine.problem:
        # A container that is not seen might be made twice, and an image be pulled over one that is
        # there, so this counts as no engine.
        return replace(looked, engine=replace(looked.engine, problem=problem))
    return looked


def _second_look(found: FoundHost, shell: Shell, looking: Looking) -> FoundHost:
    """What could only be asked once the first answers were there."""
    wanted, layout = looking.wanted, found.access.layout
    questions = _Questions()
    questions.add("contents", _contents(found, wanted), wanted=_has_contents(found, looking))
    image = found.image_name
    missing = wanted.runtime == "docker" and bool(image) and found.image is None
    no_problem = not found.engine.problem
    questions.add("offer", images.offer(image), wanted=looking.for_plan and missing and no_problem)
    head = next(
        (node for node in found.ours(wanted.cluster) if node.role == "ray-head" and node.running),
        None,
    )
    if head is not None:
        command = looking.supervisor.ctl(head.name, layout, head.package, "nodes")
        questions.add("ray", ray.cluster(command.within(10)))
    said = questions.asked(shell, found.access)
    offer: images.Offer = said.pop("offer", images.Offer())
    said |= {"unpullable": offer.refusal, "offered": offer.digest(found.system.arch)}
    return replace(found, **said)


def _has_contents(found: FoundHost, looking: Looking) -> bool:
    if not looking.for_plan:
        return False
    return looking.wanted.runtime != "docker" or found.image is not None


def _contents(found: FoundHost, wanted: Wanted) -> Fact[image_probe.ImageContents]:
    if wanted.runtime != "docker" or found.image is None:
        return image_probe.interpreter(wanted.python)
    name = image_probe.kept_name(found.image.short, wanted.docker_arguments)
    kept = f"{found.access.probes}/{name}"
    return image_probe.probe(found.image.id, wanted.docker_arguments, kept)


def _reached(
    found: Mapping[str, FoundHost | VllmdeployError], shells: Mapping[str, Shell], looking: Looking
) -> dict[str, FoundHost | VllmdeployError]:
    """Every host of a group tries every other, on every address that they might use."""
    there = [host for host in found.values() if isinstance(host, FoundHost)]
    groups: dict[str, list[FoundHost]] = {}
    for host in there:
        groups.setdefault(host.host.group, []).append(host)
    several = [host for host in there if len(groups[host.host.group]) > 1]
    named = {name: _names_addresses(looking.wanted.groups[name], groups[name]) for name in groups}

    def try_others(host: FoundHost) -> FoundHost:
        group = host.host.group
        by_port: dict[int, list[str]] = {}
        for other in groups[group]:
            if other is not host:
                ips = by_port.setdefault(other.host.port or looking.ssh_port, [])
                ips += host.links.may_use(other.links, named=named[group])
        tried: dict[str, str] = {}
        for port, ips in sorted(by_port.items()):
            if ips:
                answers: dict[str, str] = ask_one(shells[host.host.name], network.reach(ips, port))
                tried.update(answers)
        return replace(host, reach=tried)

    answers = each(several, try_others)
    return dict(zip((host.host.name for host in several), answers, strict=True))


def _names_addresses(group: WantedGroup, found: Sequence[FoundHost]) -> bool:
    by_host = any(one.host.ip or one.host.interface for one in found)
    return by_host or bool(group.head_ip) or group.interface != AUTO
