"""Images on a host: what they are, where they come from, and when two of them are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import count, fields, json_line, json_object, strings
from vllmdeploy.core.spec import fingerprint
from vllmdeploy.errors import last_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image on a host: its id is what containers run by.

    The id is the digest of the image's configuration in Docker's own store, and the digest of its
    manifest in containerd's: the same image has two ids. `content` is the same in both.
    """

    id: str
    arch: str
    user: str = ""
    layers: tuple[str, ...] = ()
    python_path: str = ""
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    references: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size: int = 0
    content: str = ""

    @property
    def short(self) -> str:
        return self.id.removeprefix("sha256:")[:12]

    def digest_of(self, reference: str) -> str:
        """What a registry called it when it was pulled by this name; empty after `docker load`."""
        wanted = _familiar(repository(reference))
        split = (one.partition("@") for one in self.digests)
        return next((digest for name, _, digest in split if _familiar(name) == wanted), "")

    def same_as(self, other: Image) -> bool:
        """One id, or the same layers run in the same way."""
        return self.id == other.id or (bool(self.layers) and self.content == other.content)


# The whole of it: from 29 on Docker leaves out what an image does not set, and a format that names
# such a field fails.
_FORMAT = "{{json .}}"


def _image(shown: Mapping[str, Any]) -> Image:
    config = fields(shown.get("Config"))
    environment = _texts(config.get("Env"))
    layers = _texts(fields(shown.get("RootFS")).get("Layers"))
    arch, user = str(shown.get("Architecture") or ""), str(config.get("User") or "")
    labels = strings(config.get("Labels"))
    ways = [_texts(config.get("Cmd")), _texts(config.get("Entrypoint"))]
    folder = str(config.get("WorkingDir") or "")
    parts = [arch, user, layers, environment, *ways, folder, dict(labels)]
    return Image(
        id=str(shown.get("Id", "")),
        arch=arch,
        user=user,
        layers=layers,
        python_path=next(
            (one.partition("=")[2] for one in environment if one.startswith("PYTHONPATH=")), ""
        ),
        labels=labels,
        references=_texts(shown.get("RepoTags")),
        digests=_texts(shown.get("RepoDigests")),
        size=count(shown.get("Size")),
        content=fingerprint(parts),
    )


def _texts(value: object) -> tuple[str, ...]:
    found = cast("list[object]", value) if isinstance(value, list) else []
    return tuple(text for text in found if isinstance(text, str))


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """The image that a host has under a name; with a `problem` it may be there all the same."""

    image: Image | None = None
    problem: str = ""


def _parse_image(result: Result) -> Held:
    shown = json_line(result.stdout)
    if shown is not None:
        return Held(image=_image(shown))
    if result.timed_out:
        return Held(problem="`docker image inspect` hangs")
    if result.ok or not result.stderr or "no such image" in result.stderr.lower():
        return Held()
    return Held(problem=f"docker image inspect: {last_line(result.stderr)}")


def image(reference: str) -> Fact[Held]:
    return Fact(
        name="docker image",
        program="docker",
        command=Command(
            ("docker", "image", "inspect", "--format", _FORMAT, reference), limit_s=20, root=True
        ),
        parse=_parse_image,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """All images of one engine, and what keeps them. `shares_layers`: it loads an archive without
    the layers that it has already, as Docker's own store does and containerd's does not."""

    images: tuple[Image, ...] = ()
    kind: str = ""
    free_bytes: int | None = None
    problem: str = ""

    @property
    def shares_layers(self) -> bool:
        return self.kind == "docker"

    @property
    def layers(self) -> frozenset[str]:
        return frozenset(layer for image in self.images for layer in image.layers)

    def find(self, reference: str) -> Image | None:
        """By name, by name without its tag, or by the beginning of its id."""
        names = {reference, f"{reference}:latest"}
        wanted = reference.removeprefix("sha256:")
        by_name = (one for one in self.images if names & set(one.references))
        by_id = (
            one
            for one in self.images
            if len(wanted) >= _LEAST_ID and one.id.removeprefix("sha256:").startswith(wanted)
        )
        return next(by_name, None) or next(by_id, None)

    def same(self, image: Image) -> Image | None:
        return next((one for one in self.images if one.same_as(image)), None)


_LEAST_ID = 12
_CONTAINERD = "io.containerd.snapshotter"
# From 29 on `docker image ls` leaves out images without a name, as one is that was just loaded.
_STORE = """
status=$(docker info --format '{"driver":{{json .DriverStatus}},"root":{{json .DockerRootDir}}}') \\
  || exit
printf '%s\\n' "$status"
root=$(printf '%s' "$status" | sed 's/.*"root":"\\([^"]*\\)".*/\\1/')
df -Pk "$root" 2>/dev/null | awk 'END { print "{\\"free\\":" $4 "}" }'
named=$(docker image ls --quiet --no-trunc) || exit
unnamed=$(docker image ls --quiet --no-trunc --filter dangling=true) || exit
ids=$(printf '%s\\n' "$named" "$unnamed" | sort -u)
[ -n "$ids" ] || exit 0
exec docker image inspect --format "$1" $ids
"""


def _parse_store(result: Result) -> Store:
    said = [json_object(line) for line in result.stdout.split("\n") if line.startswith("{")]
    shown = [one for one in said if one is not None]
    head = next((one for one in shown if "driver" in one), None)
    # An image that goes between the two questions fails the second one for itself alone.
    gone = "no such image" in result.stderr.lower()
    if head is None or result.timed_out or not (result.ok or gone):
        return Store(problem=f"its images are not told: {last_line(result.output)}")
    free = next((count(one["free"]) for one in shown if "free" in one), None)
    return Store(
        images=tuple(_image(one) for one in shown if "Id" in one),
        kind="containerd" if _CONTAINERD in str(head["driver"]) else "docker",
        free_bytes=None if free is None else free * 1024,
    )


STORE = Fact(
    name="docker images",
    program="docker",
    command=script(_STORE, _FORMAT, root=True).within(30),
    parse=_parse_store,
)


def pull(reference: str) -> Command:
    return Command(("docker", "pull", reference), limit_s=3600, root=True)


def tag(image_id: str, reference: str) -> Command:
    return Command(("docker", "tag", image_id, reference), root=True)


def repository(reference: str) -> str:
    """The name without its tag and digest; a registry may have a port."""
    name = reference.partition("@")[0]
    place, slash, last = name.rpartition("/")
    return f"{place}{slash}{last.partition(':')[0]}"


def by_digest(reference: str, digest: str) -> str:
    return f"{repository(reference)}@{digest}"


def _familiar(name: str) -> str:
    """As Docker itself shortens names of its own registry."""
    for prefix in ("index.docker.io/", "docker.io/", "library/"):
        name = name.removeprefix(prefix)
    return name


@dataclass(frozen=True, slots=True)
class Offer:
    """What a registry has under a name: digests by architecture, or its own no."""

    digests: Mapping[str, str] = field(default_factory=dict[str, str])
    refusal: str = ""

    def digest(self, arch: str) -> str:
        return self.digests.get(arch, "")


def offer(reference: str) -> Fact[Offer]:
    """Downloads nothing. Only a registry's own no counts as one: the question goes straight to it,
    while a pull may go through the engine's mirrors. Where it is out of reach, the pull shows it.
    """
    argv = ("docker", "manifest", "inspect", "--verbose", reference)
    return Fact(name="registry", command=Command(argv, limit_s=25, root=True), parse=_parse_offer)


_REGISTRY_SAYS_NO = ("no such manifest", "manifest unknown", "denied", "unauthorized", "not found")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def _parse_offer(result: Result) -> Offer:
    said = last_line(result.stderr)
    if not result.ok:
        refused = any(sign in said.lower() for sign in _REGISTRY_SAYS_NO)
        return Offer(refusal=said if refused and result.status not in (126, 127) else "")
    try:
        shown = json.loads(result.stdout)
    except ValueError:
        return Offer()
    # One manifest, or a list of one for each platform.
    listed = cast("list[object]", shown) if isinstance(shown, list) else [shown]
    described = [fields(fields(one).get("Descriptor")) for one in listed]
    return Offer(
        {
            str(fields(one.get("platform")).get("architecture", "")): str(one["digest"])
            for one in reversed(described)
            if _DIGEST.fullmatch(str(one.get("digest", ""))) and fields(one.get("platform"))
        }
    )


def build(
    tag: str,
    dockerfile: str,
    *,
    arguments: Mapping[str, str],
    labels: Mapping[str, str],
    network: str,
) -> Command:
    """The context comes on stdin, as a tar. `--force-rm`: Docker's old builder keeps the container
    of a step that failed, and with it gigabytes of what was copied."""
    return Command(
        (
            *("docker", "build", "--force-rm", "--tag", tag),
            *("--network", network, "--file", dockerfile),
            *(word for one in arguments.items() for word in ("--build-arg", "=".join(one))),
            *(word for one in labels.items() for word in ("--label", "=".join(one))),
            "-",
        ),
        limit_s=2 * 3600,
        root=True,
    )


# What Docker's two builders say of themselves; the rest is what the build's programs said.
_OF_DOCKER = re.compile(
    r"Sending build context|Step \d+|\s*--->|Removing intermediate|The command '|Dockerfile"
    r"|ERROR: failed to|#\d+ (?:[A-Z]|\[|transferring|sha256|extracting|exporting|writing|naming)"
    r"|-{4,}|\s*> \[|\s*\d+ \||DEPRECATED|\s*(?:Install the buildx|https://docs\.docker)"
)
_BUILDKIT = re.compile(r"(?:#\d+ )?\d+\.\d+ ")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def why_not_built(result: Result) -> str:
    """The last words of what ran in the build: Docker's own are only that it failed."""
    lines = [_COLOUR.sub("", line).rstrip() for line in result.output.splitlines()]
    said = [_BUILDKIT.sub("", one, count=1) for one in lines if not _OF_DOCKER.match(one)]
    telling = [one for one in said if one.strip()]
    return telling[-1] if telling else result.output


def prune_stage() -> Command:
    """The first stage of a build, as large as the image, which Docker's old builder leaves."""
    label = "label=vllmdeploy.image.stage=made"
    return Command(
        ("docker", "image", "prune", "--force", "--filter", label), limit_s=300, root=True
    )
