"""One group decided: its network, its cards, its members, and every reason against it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.plan import preflight
from vllmdeploy.plan.cards import share_for_ray
from vllmdeploy.plan.executor import about_executor, executor_of
from vllmdeploy.plan.network import Choice, Place, choose
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.wanted import Wanted


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A group decided: its members with their places and shares, and what there is to say."""

    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()


Accelerators = Callable[[FoundHost], Accelerator]


def decide_group(
    wanted: Wanted,
    name: str,
    found: Sequence[FoundHost],
    accelerators: Accelerators,
    *,
    places: Mapping[str, Place] | None = None,
    standing_in: Mapping[str, str] | None = None,
) -> GroupPlan:
    """`places` are given where nobody was asked; otherwise the hosts' own networks decide.
    `standing_in`: for whom, by the spare host that does."""
    group = wanted.groups[name]
    choice = (
        Choice(places)
        if places is not None
        else choose(found, interface=group.interface, head_ip=group.head_ip)
    )
    shares = {host.host.name: share_for_ray(host, wanted.cluster) for host in found}
    refusals = (*choice.problems, *preflight.refusals(wanted, group, found, shares))
    if choice.problems:
        return GroupPlan((), refusals=refusals)
    head = choice.places[found[0].host.name]
    token = preflight.needs_token(wanted, found)
    executor = executor_of(wanted, found)
    members = tuple(
        Member(
            found=host,
            accelerator=accelerators(host),
            share=shares[host.host.name],
            place=choice.places[host.host.name],
            head=head,
            token=token,
            executor=executor,
            stands_in_for=(standing_in or {}).get(host.host.name, ""),
        )
        for host in found
    )
    notes = (
        *about_executor(wanted, name, executor),
        *_about_places(name, choice, members),
        *(note for share in shares.values() for note in share.notes),
        *preflight.remarks(wanted, found, choice.places),
    )
    return GroupPlan(members, notes, refusals)


def _about_places(group: str, choice: Choice, members: Sequence[Member]) -> tuple[str, ...]:
    lines = [f"group {group}: {note}" for note in choice.notes]
    lines += [f"{member.name}: {member.place}{_faster(member)}" for member in members]
    return tuple(lines)


def _faster(member: Member) -> str:
    """Names an interface that is faster than the one in use: somebody paid for it."""
    own = member.place.speed_mbit or 0
    faster = [
        link
        for link in member.found.links.interfaces
        if link.for_fleet and (link.speed_mbit or 0) > own and link.name != member.place.interface
    ]
    if not faster:
        return ""
    best = max(faster, key=lambda link: link.speed_mbit or 0)
    speed = f"{(best.speed_mbit or 0) / 1000:g} Gbit/s"
    return f"; faster NIC unused: {best.name} {best.ip} ({speed})"
