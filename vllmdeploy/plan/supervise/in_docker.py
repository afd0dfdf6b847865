"""A node as PID 1 of a container that Docker starts again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vllmdeploy.core.command import Command
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.layout import (
    CACHE_MOUNT,
    LOGS_MOUNT,
    PACKAGE_FILE,
    PACKAGE_MOUNT,
    RUN_MOUNT,
    SECRETS_MOUNT,
    SERVICES_MOUNT,
    Layout,
)
from vllmdeploy.core.spec import ContainerSpec, Mount, NodeSpec, fingerprint
from vllmdeploy.plan import mps_share
from vllmdeploy.plan.node import Member, token_path
from vllmdeploy.plan.observed import FoundHost, FoundNode, found_node
from vllmdeploy.plan.supervise.base import STOP_S, Made, cache_folder, caches, owner, warden
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools import docker


@dataclass(frozen=True, slots=True)
class InDocker:
    """PID 1 of a container that Docker starts again."""

    stop_s: int = STOP_S

    def found(self, layout: Layout) -> Fact[tuple[FoundNode, ...]]:
        return Fact(
            name="containers",
            command=docker.CONTAINERS.command,
            parse=lambda result: tuple(map(found_node, docker.CONTAINERS.parse(result).found)),
        )

    def make(self, wanted: Wanted, member: Member, node: NodeSpec) -> Made:
        layout = member.layout
        spec = replace(_container(wanted, member, node), stop_s=self.stop_s)
        # Labels and package change without a reason to start anew, so they stay outside.
        mark = fingerprint(docker.run(spec).argv)
        complete = replace(
            spec,
            labels=node.labels(mark),
            mounts=(*spec.mounts, Mount(layout.package(wanted.package), PACKAGE_MOUNT)),
        )
        return Made(
            command=docker.run(complete),
            fingerprint=mark,
            folders=(layout.run(node.name), layout.logs(node.name), _cache(member)),
            owner=owner(member.found),
        )

    def start(self, node: FoundNode, layout: Layout) -> Command:
        return docker.start(node.name)

    def stop(self, node: FoundNode, layout: Layout) -> Command:
        return docker.stop(node.name, stop_s=self.stop_s)

    def restart(self, node: FoundNode, layout: Layout) -> tuple[Command, ...]:
        return (docker.restart(node.name, stop_s=self.stop_s),)

    def remove(self, node: FoundNode, layout: Layout) -> tuple[Command, ...]:
        return (docker.stop(node.id, stop_s=self.stop_s), docker.remove(node.id))

    def ctl(self, name: str, layout: Layout, package: str, *argv: str) -> Command:
        module = ("python3", "-m", "vllmdeploy.node.ctl", "--run", RUN_MOUNT)
        return docker.execute(name, *module, *argv)

    def logs(
        self, name: str, layout: Layout, *, tail: int | None = None, follow: bool = False
    ) -> Command:
        return docker.logs(name, tail=tail, follow=follow)


def _container(wanted: Wanted, member: Member, node: NodeSpec) -> ContainerSpec:
    layout = member.layout
    access = member.container_access(by_cdi=wanted.cdi)
    image = member.found.image
    return ContainerSpec(
        name=node.name,
        image=image.id if image else member.found.image_name,
        entrypoint="python3",
        command=warden(node, run=RUN_MOUNT, logs=LOGS_MOUNT, services=SERVICES_MOUNT),
        environment={
            "PYTHONPATH": _python_path(member.found),
            **caches(CACHE_MOUNT),
            **(token_path(SECRETS_MOUNT) if member.token else {}),
            **access.environment,
            **node.environment,
        },
        mounts=(
            *((Mount(layout.ray_secrets, SECRETS_MOUNT),) if member.token else ()),
            *((Mount(layout.services, SERVICES_MOUNT),) if node.role != "instance" else ()),
            Mount(layout.run(node.name), RUN_MOUNT, writable=True),
            Mount(layout.logs(node.name), LOGS_MOUNT, writable=True),
            Mount(_cache(member), CACHE_MOUNT, writable=True),
            Mount(wanted.model_path, wanted.model_path),
            *(mps_share.mounts(node.mps) if node.mps else ()),
        ),
        arguments=(
            *access.arguments,
            *(mps_share.ARGUMENTS if node.mps else ()),
            *wanted.docker_arguments,
        ),
        shm_size=wanted.shm_size,
    )


def _python_path(found: FoundHost) -> str:
    """Ours first, then what the image itself has set: vendor images do."""
    own = f"{PACKAGE_MOUNT}/{PACKAGE_FILE}"
    theirs = found.image.python_path if found.image else ""
    return f"{own}:{theirs}" if theirs else own


def _cache(member: Member) -> str:
    image = member.found.image
    return cache_folder(member, image.short if image else "unknown")
