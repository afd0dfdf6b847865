"""Pulls of the images that hosts lack: one digest for a whole group, resolved once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vllmdeploy.core.plan import Draft, Plan, Run, Step
from vllmdeploy.plan.group import GroupPlan
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import images


def plan_pulls(wanted: Wanted, groups: Mapping[str, GroupPlan]) -> Plan:
    """They come first and alone: what is inside the images decides the rest.

    A tag may move between two pulls. Where nobody can tell its digest yet, one host of a group
    pulls by the tag, and the others by that host's digest in a second plan.
    """
    draft = Draft()
    for group in groups.values():
        if wanted.runtime != "docker" or group.refusals:
            continue
        found = [member.found for member in group.members]
        asked: set[tuple[str, str]] = set()
        for member in group.members:
            it = member.found
            kind = (it.image_name, it.system.arch)
            known = "@" in it.image_name or bool(pinned(it, found))
            if it.image is not None or (kind in asked and not known):
                continue
            asked.add(kind)
            add_pull(draft, member, found)
    return draft.finished()


def add_pull(draft: Draft, member: Member, group: Sequence[FoundHost]) -> str:
    """The key of the last step: by digest, the name is given afterwards."""
    image, of = member.found.image_name, member.found.access.of
    digest = pinned(member.found, group)
    subject = f"image {image}"
    command = of(images.pull(images.by_digest(image, digest) if digest else image))
    hint = (
        f"is IMAGE right, and the registry reachable from {member.name}? Without one, load the"
        " image on one host (docker load) and let `vllmdeploy image push` bring it to the others"
    )
    key = draft.add(Step(member.name, "pull", subject, "not there", Run(command), hint=hint))
    if not digest:
        return key
    named = of(images.tag(images.by_digest(image, digest), image))
    return draft.add(Step(member.name, "tag", subject, "pulled by digest", Run(named), (key,)))


def pinned(host: FoundHost, group: Sequence[FoundHost]) -> str:
    """What the name means in this run: what a host of the group has pulled, else what the registry
    said first. Empty: nobody knows, or the name says it itself."""
    if "@" in host.image_name:
        return ""
    alike = [
        one
        for one in group
        if one.image_name == host.image_name and one.system.arch == host.system.arch
    ]
    had = (one.image.digest_of(one.image_name) for one in alike if one.image)
    return next(filter(None, had), "") or next(filter(None, (one.offered for one in alike)), "")
