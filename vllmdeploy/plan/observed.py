"""What was found on the hosts: the planner's other argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vllmdeploy.core.card import CardReport
from vllmdeploy.core.host import Fleet, Host
from vllmdeploy.core.reading import whole
from vllmdeploy.core.spec import (
    CARDS_LABEL,
    CLUSTER_LABEL,
    FINGERPRINT_LABEL,
    GENERATION_LABEL,
    GROUP_LABEL,
    MPS_LABEL,
    PACKAGE_LABEL,
    ROLE_LABEL,
    STANDS_IN_LABEL,
)
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.docker import Container, Engine
from vllmdeploy.tools.image_probe import ImageContents
from vllmdeploy.tools.images import Image
from vllmdeploy.tools.network import Links
from vllmdeploy.tools.ray import RayCluster
from vllmdeploy.tools.system import Firewall, Listener, System
from vllmdeploy.tools.warden import Warden


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundNode:
    """One of our nodes on a host, whatever supervises it there."""

    name: str
    id: str
    role: str
    group: str
    running: bool
    cluster: str = ""
    state: str = ""
    fingerprint: str = ""
    generation: int = 0
    cards: tuple[int, ...] = ()
    package: str = ""
    image_id: str = ""
    started_at: str = ""
    restarts: int = 0
    mps: str = ""
    """The folder of the MPS daemon whose client its engine is."""
    stands_in_for: str = ""
    """The dead host whose place this one's spare host took."""

    @property
    def stopped(self) -> str:
        """Why it does not run. systemd and Docker have a word for between two runs."""
        if self.state in ("activating", "restarting"):
            return "it ended, and is being started again"
        return f"it is {self.state}; `vllmdeploy up` starts it"


def lone_worker(fleet: Fleet, found: FoundHost, cluster: str) -> FoundNode | None:
    """The node that `vllmdeploy worker` made on a host which knows of no other: its head is on
    another machine and in no settings of this one."""
    if len(fleet.hosts) != 1:
        return None
    nodes = {node.role: node for node in found.ours(cluster)}
    return None if "ray-head" in nodes else nodes.get("ray-worker")


def labelled_node(
    name: str, labels: Mapping[str, str], *, running: bool, state: str, id_: str = ""
) -> FoundNode:
    """What our labels say, wherever they were written."""
    cards = labels.get(CARDS_LABEL, "").split(",")
    return FoundNode(
        name=name,
        id=id_ or name,
        role=labels.get(ROLE_LABEL, ""),
        group=labels.get(GROUP_LABEL, ""),
        cluster=labels.get(CLUSTER_LABEL, ""),
        running=running,
        state=state,
        fingerprint=labels.get(FINGERPRINT_LABEL, ""),
        generation=whole(labels.get(GENERATION_LABEL, "")) or 0,
        cards=tuple(card for card in map(whole, cards) if card is not None and card >= 0),
        package=labels.get(PACKAGE_LABEL, ""),
        mps=labels.get(MPS_LABEL, ""),
        stands_in_for=labels.get(STANDS_IN_LABEL, ""),
    )


def found_node(container: Container) -> FoundNode:
    node = labelled_node(
        container.name,
        container.labels,
        running=container.running,
        state=_state(container),
        id_=container.id,
    )
    return replace(
        node,
        image_id=container.image_id,
        started_at=container.started_at,
        restarts=container.restarts,
    )


def _state(container: Container) -> str:
    if container.oom_killed:
        return f"{container.state} ({container.exit_code}, out of memory)"
    if container.state in ("exited", "dead"):
        return f"{container.state} ({container.exit_code})"
    return container.state


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundHost:
    """One host as it is now. What could not be asked is empty, never invented."""

    host: Host
    access: Access
    system: System = System()
    links: Links = Links()
    listeners: tuple[Listener, ...] = ()
    firewall: Firewall = Firewall()
    engine: Engine = Engine()
    containers: tuple[Container, ...] = ()
    supervised: tuple[FoundNode, ...] = ()
    image_name: str = ""
    """The image this host is to run: its group's, else its accelerator's usual one."""
    image: Image | None = None
    unpullable: str = ""
    offered: str = ""
    """The digest that the registry would give this host for the image's name, where it says it."""
    contents: ImageContents | None = None
    cards: CardReport = CardReport(vendor="")
    packages: tuple[str, ...] = ()
    sync: tuple[str, ...] = ()
    """What lets other hosts of the cluster read models here."""
    secrets: Mapping[str, str] = field(default_factory=dict[str, str])
    wardens: Mapping[str, Warden] = field(default_factory=dict[str, Warden])
    ray: RayCluster | None = None
    reach: Mapping[str, str] = field(default_factory=dict[str, str])
    promised: Mapping[int, str] = field(default_factory=dict[int, str])
    """Cards that stored instances have, also while these do not run."""

    def ours(self, cluster: str) -> tuple[FoundNode, ...]:
        """Our nodes of one cluster, from every supervisor."""
        contained = (
            found_node(container)
            for container in self.containers
            if container.labels.get(CLUSTER_LABEL) == cluster
        )
        return (*contained, *self.supervised)

    def strangers(self, cluster: str) -> tuple[Container, ...]:
        return tuple(
            container
            for container in self.containers
            if container.labels.get(CLUSTER_LABEL) != cluster
        )
