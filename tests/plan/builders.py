"""Short ways to say what was found and what is wanted."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from vllmdeploy.accelerators import registry
from vllmdeploy.core.card import Card, CardReport
from vllmdeploy.core.host import Host
from vllmdeploy.core.layout import Layout
from vllmdeploy.core.plan import Plan, Run
from vllmdeploy.core.spec import (
    CARDS_LABEL,
    CLUSTER_LABEL,
    FINGERPRINT_LABEL,
    GENERATION_LABEL,
    GROUP_LABEL,
    PACKAGE_LABEL,
    ROLE_LABEL,
)
from vllmdeploy.plan.group import GroupPlan, decide_group
from vllmdeploy.plan.node_steps import Payload
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.supervise import InDocker
from vllmdeploy.plan.up import plan_up
from vllmdeploy.plan.wanted import Wanted, WantedGroup
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.docker import Container, Engine
from vllmdeploy.tools.files import digest
from vllmdeploy.tools.image_probe import ImageContents
from vllmdeploy.tools.images import Image
from vllmdeploy.tools.network import Interface, Links
from vllmdeploy.tools.ray import RayCluster, RayNode, RayPorts
from vllmdeploy.tools.system import System
from vllmdeploy.tools.warden import Warden

TOKEN = "0123456789abcdef"
PACKAGE = "abcdef123456"
PORTS = RayPorts(
    gcs=6379,
    dashboard=8265,
    client=10001,
    node_manager=10010,
    object_manager=10011,
    runtime_env_agent=10012,
    dashboard_agent_grpc=10013,
    dashboard_agent=52365,
    metrics=10014,
    autoscaler_metrics=10015,
    dashboard_metrics=10016,
    workers=(20000, 20999),
)
IMAGE = Image(id="sha256:" + "1" * 64, arch="amd64")


def wanted(**changes: Any) -> Wanted:
    base = Wanted(
        cluster="vllm",
        groups={"default": WantedGroup(name="default", image="vllm/vllm-openai:v0.17.0")},
        ports=PORTS,
        package=PACKAGE,
        model_path="/data/models",
        shm_size="16g",
    )
    return replace(base, **changes)


def link(ip: str, name: str = "eth0", speed: int | None = 10_000) -> Interface:
    return Interface(name=name, ip=ip, prefix=24, speed_mbit=speed)


def cards(count: int = 2, name: str = "NVIDIA H200") -> CardReport:
    return CardReport(
        vendor="nvidia",
        cards=tuple(
            Card(index=index, name=name, memory_total_mib=143_771) for index in range(count)
        ),
    )


def bare(name: str, ip: str, *, head: bool = False, **changes: Any) -> FoundHost:
    """A host with Docker, cards, the image and nothing of ours."""
    options = {
        key: changes.pop(key)
        for key in ("group", "gpus", "ray_gpus", "interface", "spare")
        if key in changes
    }
    found = FoundHost(
        host=Host(name=name, address=ip, head=head, source="worker_nodes.txt:1", **options),
        access=Access(Layout("/var/lib/vllmdeploy/vllm"), "root", 0, False, False),
        system=System(hostname=name, machine="x86_64", clock=1_000, state_free_mib=100_000),
        links=Links(interfaces=(link(ip),), default_interface="eth0"),
        engine=Engine(version="28.2.2", arch="amd64"),
        image_name="vllm/vllm-openai:v0.17.0",
        image=IMAGE,
        contents=ImageContents(python="3.12.3", ray="2.60.0", vllm="0.17.0"),
        cards=cards(),
    )
    return replace(found, **changes)


def two_hosts() -> list[FoundHost]:
    return [bare("gpu-01", "10.0.0.1", head=True), bare("gpu-02", "10.0.0.2")]


def decided(what: Wanted, found: list[FoundHost]) -> dict[str, GroupPlan]:
    names = dict.fromkeys(host.host.group for host in found)
    return {
        name: decide_group(
            what,
            name,
            sorted(
                (host for host in found if host.host.group == name),
                key=lambda host: not host.host.head,
            ),
            lambda host: registry.named(host.cards.vendor),
        )
        for name in names
    }


def planned(what: Wanted, found: list[FoundHost]) -> Plan:
    return plan_up(what, decided(what, found), Payload(b"zip", TOKEN), InDocker())


def lines(plan: Plan) -> str:
    """The plan without its commands: what, why, and what it waits for."""
    return "\n".join(f"{step.key} ({step.cause})" for step in plan)


def after(plan: Plan, found: list[FoundHost]) -> list[FoundHost]:
    """The hosts as they are once every step of the plan has succeeded."""
    return [_applied(host, plan) for host in found]


def _applied(found: FoundHost, plan: Plan) -> FoundHost:
    name = found.host.name
    for step in (step for step in plan if step.host == name):
        argv = step.command.argv
        if not isinstance(step.action, Run):
            continue
        if argv[:2] == ("docker", "run"):
            found = replace(found, containers=(*found.containers, _started(argv)))
        elif argv[:2] in (("docker", "start"), ("docker", "restart")):
            found = replace(
                found,
                containers=tuple(
                    replace(one, state="running") if one.name == argv[-1] else one
                    for one in found.containers
                ),
                wardens={argv[-1]: Warden(state="running")},
            )
        elif argv[:2] == ("docker", "rm"):
            left = tuple(one for one in found.containers if one.id != argv[-1])
            found = replace(found, containers=left)
        elif step.subject == "Ray token":
            found = replace(found, secrets={"ray/ray_token": digest(TOKEN.encode())})
        elif step.subject.startswith("package"):
            found = replace(found, packages=(*found.packages, PACKAGE))
    return found


def _started(argv: tuple[str, ...]) -> Container:
    labels = dict(value.split("=", 1) for flag, value in pairwise(argv) if flag == "--label")
    name = argv[argv.index("--name") + 1]
    return Container(
        id=f"id-of-{name}",
        name=name,
        image="vllm",
        image_id=IMAGE.id,
        state="running",
        labels=labels,
    )


def joined(found: list[FoundHost], *, cards_each: int = 2) -> list[FoundHost]:
    """The same hosts with a Ray that reports them all."""
    nodes = tuple(
        RayNode(
            name=host.host.name,
            ip=host.links.interfaces[0].ip,
            alive=True,
            resources={"GPU": float(cards_each)},
            used={},
        )
        for host in found
    )
    return [
        replace(host, ray=RayCluster(nodes=nodes)) if host.host.head else host for host in found
    ]


def settled(what: Wanted, found: list[FoundHost]) -> list[FoundHost]:
    return joined(after(planned(what, found), found))


def foreign(name: str) -> Container:
    return Container(id="f00", name=name, image="redis:7", image_id="sha256:2", state="running")


def instance(name: str, *cards_held: int) -> Container:
    """A container of ours that holds cards and is no Ray node."""
    return Container(
        id=f"id-of-{name}",
        name=name,
        image="vllm",
        image_id=IMAGE.id,
        state="running",
        labels={
            CLUSTER_LABEL: "vllm",
            GROUP_LABEL: "default",
            ROLE_LABEL: "instance",
            GENERATION_LABEL: "1",
            FINGERPRINT_LABEL: "0" * 12,
            CARDS_LABEL: ",".join(map(str, cards_held)),
            PACKAGE_LABEL: PACKAGE,
        },
    )
