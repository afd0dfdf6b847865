"""What routing knows of an upstream, of a request, and of the tie between the two."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from vllmdeploy.routing.load import Load

# Prompt lengths, in characters, whose hashes stand for "what of this prompt was seen before".
# Doubling keeps them at nine however long the prompt is, and a conversation that grows keeps all
# the hashes of its earlier turns.
PREFIX_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


class Address(NamedTuple):
    """Where an upstream listens; `prefix` is a path before `/v1`, without a slash at its end."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """One instance as it was registered; what changes from second to second is its `Load`.

    `cost` is a price per hour in any one currency: only ratios count. `generation` grows each time
    the instance behind the same id is replaced, so that news of the old one cannot touch the new.
    """

    id: str
    address: Address
    models: tuple[str, ...] = ()
    weight: float = 1.0
    cost: float = 1.0
    limit: int = 256
    generation: int = 0
    seed: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.weight <= 0 or self.cost <= 0 or self.limit < 1:
            raise ValueError(f"upstream {self.id}: weight, cost and limit must be above zero")
        object.__setattr__(self, "seed", stable_hash(self.id.encode()))


class Candidate(Protocol):
    """Anything that has an upstream and its load: the gateway's own records are candidates.

    Policies read candidates and never change them; nothing is copied to make a choice.
    """

    @property
    def upstream(self) -> Upstream: ...

    @property
    def load(self) -> Load: ...


C = TypeVar("C", bound=Candidate)


@dataclass(frozen=True, slots=True)
class Member:
    """The plainest candidate."""

    upstream: Upstream
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class Affinity:
    """What ties a request to earlier ones: its session, and hashes of ever longer prefixes."""

    session: int | None = None
    prefixes: tuple[int, ...] = ()


NO_AFFINITY = Affinity()


@dataclass(frozen=True, slots=True)
class Request:
    """A request as routing and the queue see it.

    As in vLLM, a lower `priority` goes first. `deadline` is an instant of the caller's clock.
    """

    affinity: Affinity = NO_AFFINITY
    priority: int = 0
    deadline: float | None = None
    prompt_tokens: int = 0
    max_tokens: int = 256


ANY_REQUEST = Request()


def stable_hash(text: bytes) -> int:
    """The same on every machine and in every process, unlike `hash()`."""
    return zlib.crc32(text)


def affinity_of(prompt: str = "", session: str = "") -> Affinity:
    """Reads at most the longest prefix, so a prompt of a million tokens costs no more."""
    return Affinity(
        session=stable_hash(session.encode("utf-8", "surrogatepass")) if session else None,
        prefixes=_prefix_hashes(prompt) if prompt else (),
    )


def _prefix_hashes(prompt: str) -> tuple[int, ...]:
    """One hash for each known length the prompt reaches; a shorter prompt has one, of itself."""
    hashes: list[int] = []
    rolling = start = 0
    for length in PREFIX_LENGTHS:
        if length > len(prompt):
            break
        rolling = zlib.crc32(prompt[start:length].encode("utf-8", "surrogatepass"), rolling)
        hashes.append(rolling)
        start = length
    if not hashes:
        hashes.append(zlib.crc32(prompt.encode("utf-8", "surrogatepass")))
    return tuple(hashes)
