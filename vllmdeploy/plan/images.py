"""Reasons why a group's images cannot run on its hosts, or not together, each with the fix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllmdeploy.accelerators import registry
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.wanted import Executor
from vllmdeploy.tools import image_probe, ray
from vllmdeploy.tools.image_probe import ImageContents
from vllmdeploy.tools.images import Image

_VERSIONS = ("ray", "python", "vllm", "torch", "nccl", "cuda", "rocm", "dtk")
_BUILD = "build one that has it with `vllmdeploy image build`, or set EXECUTOR=mp"


def of_image(found: FoundHost, executor: Executor = "ray") -> Iterable[str]:
    """One host's image: whether it is there, or can come, and can run."""
    name = found.host.name
    if found.engine.problem:
        return
    image = found.image_name
    if not image:
        yield f"{name}: {found.cards.vendor} has no usual image: set IMAGE"
    elif found.image is None:
        if found.unpullable:
            yield (
                f"{name}: image {image} is not there and cannot be pulled:"
                f" {found.unpullable} (bring it with `vllmdeploy image push`, or docker load)"
            )
    elif found.image.arch and found.system.arch and found.image.arch != found.system.arch:
        yield (
            f"{name}: image {image} is built for {found.image.arch},"
            f" the host is {found.system.arch}: set an IMAGE_<GROUP> built for it"
        )
    else:
        yield from of_contents(f"{name}: image {image}", found, executor)


def of_contents(subject: str, found: FoundHost, executor: Executor = "ray") -> Iterable[str]:
    contents = found.contents
    if contents is None:
        return
    if contents.problem:
        yield f"{subject}: {contents.problem}"
        return
    if executor == "ray":
        yield from of_ray(subject, contents)
    yield from _of_driver(subject, contents, found)


def of_ray(subject: str, contents: ImageContents) -> Iterable[str]:
    if not contents.ray:
        yield f"{subject} has no Ray: {_BUILD}"
        return
    if ray.version(contents.ray) < ray.OLDEST:
        yield f"{subject} has Ray {contents.ray}; 2.40 is the oldest that works"
    why = ray.known_bad(contents.ray)
    if why:
        yield f"{subject} has Ray {contents.ray}, {why}: build one with another Ray"


def _of_driver(subject: str, contents: ImageContents, found: FoundHost) -> Iterable[str]:
    driver = found.cards.driver_version
    newest = registry.named(found.cards.vendor).toolkit_limit(driver) if driver else ""
    asked = image_probe.too_new_for(contents, newest=newest, driver=driver)
    if asked:
        yield (
            f"{subject} needs CUDA {asked}; driver {driver} runs CUDA {newest} at most:"
            " update the driver, or take an image built for an older CUDA"
        )


def differences(group: str, members: Sequence[FoundHost]) -> Iterable[str]:
    """Ray refuses mixed versions late and strangely; so we do it early and by name."""
    told = False
    for what in _VERSIONS:
        seen: dict[str, list[str]] = {}
        for found in members:
            if found.contents is not None and not found.contents.problem:
                seen.setdefault(getattr(found.contents, what), []).append(found.host.name)
        if len(seen) > 1:
            told = True
            said = "; ".join(f"{value or 'none'} on {', '.join(on)}" for value, on in seen.items())
            yield f"group {group}: different versions of {what}: {said}"
    if not told:
        yield from _identities(group, members)


def _identities(group: str, members: Sequence[FoundHost]) -> Iterable[str]:
    """The same versions may still be two builds; Docker's own store and containerd's give one
    build two ids, which is no difference."""
    kinds: list[tuple[Image, list[str]]] = []
    for found in members:
        if found.image is None:
            continue
        known = next((on for image, on in kinds if image.same_as(found.image)), None)
        if known is None:
            kinds.append((found.image, [found.host.name]))
        else:
            known.append(found.host.name)
    if len(kinds) > 1:
        said = "; ".join(f"{image.short} on {', '.join(on)}" for image, on in kinds)
        name = members[0].image_name
        yield (
            f"group {group}: different images: {said} (bring one of them to all with"
            f" `vllmdeploy image push {name}`)"
        )
