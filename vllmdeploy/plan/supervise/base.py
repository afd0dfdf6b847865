"""What every supervisor of a node can do, and what all of them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vllmdeploy.core.command import Command
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.layout import Layout
from vllmdeploy.core.spec import NodeSpec
from vllmdeploy.plan.node import WARDEN_RESERVE_S, Member
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.wanted import DRAIN_S, Wanted


def stop_s(drain_s: int) -> int:
    """What a warden needs to end its engines and Ray before it is killed."""
    return drain_s + WARDEN_RESERVE_S + 5


STOP_S = stop_s(DRAIN_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How one node is made: the command, its fingerprint, and the folders it needs."""

    command: Command
    fingerprint: str
    folders: tuple[str, ...]
    owner: str = ""


class Supervisor(Protocol):
    def found(self, layout: Layout) -> Fact[tuple[FoundNode, ...]]: ...

    def make(self, wanted: Wanted, member: Member, node: NodeSpec) -> Made: ...

    def start(self, node: FoundNode, layout: Layout) -> Command: ...

    def stop(self, node: FoundNode, layout: Layout) -> Command:
        """It stays as it was made, for `start`."""
        ...

    def restart(self, node: FoundNode, layout: Layout) -> tuple[Command, ...]: ...

    def remove(self, node: FoundNode, layout: Layout) -> tuple[Command, ...]: ...

    def ctl(self, name: str, layout: Layout, package: str, *argv: str) -> Command: ...

    def logs(
        self, name: str, layout: Layout, *, tail: int | None = None, follow: bool = False
    ) -> Command: ...


def warden(node: NodeSpec, *, run: str, logs: str, services: str) -> tuple[str, ...]:
    """The warden's arguments; what it supervises stands behind `--`, to be read as it is run."""
    return (
        *("-m", "vllmdeploy.node.warden"),
        *("--name", node.name, "--role", node.role.removeprefix("ray-"), "--node", node.host),
        *("--run", run, "--logs", logs),
        *(("--services", services) if node.role != "instance" else ()),
        *(("--ray-address", node.ray_address) if node.ray_address else ()),
        *(("--stop-limit", str(node.stop_limit_s)) if node.stop_limit_s else ()),
        *node.probes,
        "--",
        *node.command,
    )


def caches(root: str) -> dict[str, str]:
    return {
        "VLLM_CACHE_ROOT": f"{root}/vllm",
        "TRITON_CACHE_DIR": f"{root}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{root}/inductor",
    }


def cache_folder(member: Member, made_for: str) -> str:
    """Compiled kernels belong to one image (or interpreter) and one kind of card."""
    names = sorted({card.name for card in member.share.cards})
    card = "-".join(names) or member.accelerator.name
    return member.layout.cache(_plain(made_for), _plain(card))


def _plain(text: str) -> str:
    letters = "".join(letter if letter.isalnum() else "-" for letter in text.lower())
    return letters.strip("-") or "unknown"


def owner(found: FoundHost) -> str:
    """Who has to read the secrets and write the logs; nothing to change where that is root."""
    contents = found.contents
    if contents is None or (contents.uid, contents.gid) == (0, 0):
        return ""
    return f"{contents.uid}:{contents.gid}"
