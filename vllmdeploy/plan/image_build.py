"""Which Ray goes onto an image, under which name, and why an image cannot get one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vllmdeploy.tools import ray
from vllmdeploy.tools.image_probe import ImageContents, numbers
from vllmdeploy.tools.images import Image

# The CPU engine, as scripts/engine.sh installs it for the tests: seen working together.
CPU_VLLM, CPU_TORCH, CPU_RAY = "0.32.0", "2.13.0", "2.60.0"
_CPU_PYTHONS = ((3, 11), (3, 12), (3, 13))
CPU_BASE = "python:3.11-slim-bookworm"

# From which vLLM on, newest first: the Ray that goes beside it. All have token authentication.
# Before 0.11 vLLM may run its old engine, which uses Ray's compiled graphs as they were then.
_FITTING = (((0, 11), "2.60.0"), ((0, 8), "2.52.1"))
_OLDEST_PYTHON, _NEWEST_PYTHON = (3, 10), (3, 13)
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_WHEEL = re.compile(
    r"(?P<name>[A-Za-z0-9_.]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<python>[^-]+)"
    r"-[^-]+-(?P<platform>[^-]+)\.whl"
)
LABEL = "vllmdeploy.image"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build, decided: its Dockerfile's arguments, and what it is labelled with."""

    base: str
    tag: str
    dockerfile: str
    arguments: Mapping[str, str]
    labels: Mapping[str, str]


def fitting_ray(vllm: str) -> str:
    have = numbers(vllm)
    return next((version for least, version in _FITTING if have >= least), _FITTING[-1][1])


def with_ray(
    reference: str, image: Image, contents: ImageContents, *, wheels: Sequence[str], tag: str = ""
) -> Build | str:
    """The build, or why there is none."""
    if contents.problem:
        return f"image {reference}: {contents.problem}"
    if not contents.vllm:
        return f"image {reference} has no vLLM: choose one that has, or --cpu makes one"
    if contents.ray and not ray.known_bad(contents.ray):
        return f"image {reference} has Ray {contents.ray} already: use it as it is"
    if not _OLDEST_PYTHON <= numbers(contents.python)[:2] <= _NEWEST_PYTHON:
        return f"image {reference} has Python {contents.python}; Ray is for 3.10 to 3.13"
    wanted = fitting_ray(contents.vllm)
    version = _from_wheels(wheels, wanted, contents.python, image.arch) if wheels else wanted
    if not version:
        return _no_wheel(wheels, wanted, contents.python, image.arch)
    return Build(
        base=reference if reference in image.references else image.id,
        tag=tag or _tag(reference, image, version),
        dockerfile="Dockerfile.ray",
        arguments={"RAY": version},
        labels={
            f"{LABEL}.base": image.id,
            f"{LABEL}.ray": version,
            f"{LABEL}.vllm": contents.vllm,
            f"{LABEL}.python": contents.python,
            **({f"{LABEL}.torch": contents.torch} if contents.torch else {}),
        },
    )


def for_cpu(reference: str, image: Image, contents: ImageContents, *, tag: str = "") -> Build | str:
    if contents.problem:
        return f"image {reference}: {contents.problem}"
    if numbers(contents.python)[:2] not in _CPU_PYTHONS:
        return (
            f"image {reference} has Python {contents.python}; vLLM's CPU build needs 3.11 to 3.13"
        )
    versions = {"RAY": CPU_RAY, "VLLM": CPU_VLLM, "TORCH": CPU_TORCH}
    return Build(
        base=reference if reference in image.references else image.id,
        tag=tag or f"vllmdeploy/cpu:vllm{CPU_VLLM}-ray{CPU_RAY}",
        dockerfile="Dockerfile.cpu",
        arguments=versions,
        labels={
            f"{LABEL}.base": image.id,
            f"{LABEL}.python": contents.python,
            **{f"{LABEL}.{name.lower()}": version for name, version in versions.items()},
        },
    )


def _from_wheels(wheels: Sequence[str], wanted: str, python: str, arch: str) -> str:
    """The one that is wanted, else the newest that may be used."""
    fits = _ray_wheels(wheels, python, arch)
    usable = [one for one in fits if not ray.known_bad(one) and numbers(one) >= ray.OLDEST]
    return wanted if wanted in usable else max(usable, key=numbers, default="")


def _ray_wheels(wheels: Sequence[str], python: str, arch: str) -> list[str]:
    major, minor = numbers(python)[:2]
    tag, machine = f"cp{major}{minor}", _MACHINES.get(arch, arch)
    found = filter(None, map(_WHEEL.fullmatch, wheels))
    return [
        one["version"]
        for one in found
        if one["name"] == "ray" and one["python"] == tag and one["platform"].endswith(machine)
    ]


def _no_wheel(wheels: Sequence[str], wanted: str, python: str, arch: str) -> str:
    machine = _MACHINES.get(arch, arch)
    short = ".".join(map(str, numbers(python)[:2]))
    there = ", ".join(one for one in wheels if one.startswith("ray-")) or "none of Ray"
    return (
        f"--wheels has no Ray for Python {short} on {machine} ({there}): where there is a network,"
        f" `pip download --only-binary=:all: --python-version {short}"
        f" --platform manylinux2014_{machine} -d DIR 'ray[default]=={wanted}'`"
    )


def _tag(reference: str, image: Image, version: str) -> str:
    """A name of ours: under the base's own, another host might ask a registry for it."""
    last = reference.rpartition("/")[2] if reference in image.references else image.short
    name, _, tag = last.partition(":")
    return f"vllmdeploy/{name}:{tag or 'latest'}-ray{version}"


def wrong(build: Build, base: Image, made: Image, had: ImageContents, has: ImageContents) -> str:
    """What is not as it should be in the image that was made; nothing where all is well."""
    if made.layers[: len(base.layers)] != base.layers:
        return "it was not made from the image that was looked at: somebody moved its name"
    if has.problem:
        return has.problem
    if has.ray != build.arguments["RAY"]:
        return f"it has Ray {has.ray or 'nowhere'}, not {build.arguments['RAY']}"
    kept = ("python", "vllm", "torch") if had.vllm else ("python",)
    changed = [what for what in kept if getattr(had, what) != getattr(has, what)]
    return f"its {changed[0]} is another one now" if changed else ""
