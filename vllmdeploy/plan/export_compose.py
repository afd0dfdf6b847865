"""Exported instances and their gateway as a Compose file."""

from __future__ import annotations

from collections.abc import Mapping

from vllmdeploy.core.layout import PACKAGE_FILE
from vllmdeploy.core.spec import ContainerSpec, Mount
from vllmdeploy.plan import mps_share
from vllmdeploy.plan.export import Exported, environment_of, gateway_argv
from vllmdeploy.plan.instances_node import Instance
from vllmdeploy.tools import compose


def compose_files(exported: Exported, host: str) -> Mapping[str, bytes]:
    services: dict[str, compose.Composed] = {}
    last: dict[tuple[int, ...], str] = {}
    for one in exported.by_host[host]:
        cards = one.slot.cards
        services[one.service.name] = compose.Composed(
            spec=_container(exported, one),
            health=f"{one.service.url}/health",
            # Each measures the memory that is left on its card, so they take turns.
            after=(last[cards],) if cards and cards in last else (),
        )
        last[cards] = one.service.name
    if host == exported.lead:
        services["gateway"] = compose.Composed(spec=_gateway_container(exported, host))
    heading = (
        "Written by `vllmdeploy export compose`.\n"
        f"For {host}: docker compose up -d, in this folder."
    )
    if host == exported.lead:
        keys = "keys/admin_key" if exported.gateway.keyless else "keys/api_keys and keys/admin_key"
        heading += f"\nFirst put {keys} there (mode 0600, one key a line)."
    if any(one.node.mps for one in exported.by_host[host]):
        heading += f"\nBefore all: vllmdeploy mps start --hosts {host}"
    text = compose.text(services, heading=heading)
    return {"compose.yaml": text.encode(), **exported.beside(host)}


def _container(exported: Exported, one: Instance) -> ContainerSpec:
    wanted, member = exported.wanted, one.member
    access = member.container_access(by_cdi=wanted.cdi)
    program, *rest = one.file.argv
    return ContainerSpec(
        name=one.node.name,
        image=member.found.image_name,
        entrypoint=program,
        command=tuple(rest),
        environment={**access.environment, **environment_of(wanted, one)},
        mounts=(Mount(wanted.model_path, wanted.model_path), *_door_mounts(one)),
        arguments=(
            *access.arguments,
            *(mps_share.ARGUMENTS if one.node.mps else ()),
            *wanted.docker_arguments,
        ),
        shm_size=wanted.shm_size,
    )


def _door_mounts(one: Instance) -> tuple[Mount, ...]:
    return mps_share.mounts(one.node.mps) if one.node.mps else ()


def _gateway_container(exported: Exported, host: str) -> ContainerSpec:
    image = next(
        (one.member.found.image_name for one in exported.instances.of if one.slot.host == host),
        "python:3.12-slim",
    )
    program, *rest = gateway_argv(exported, python="python3", files="/gateway", state="/state")
    return ContainerSpec(
        name=f"{exported.cluster}-gateway",
        image=image,
        entrypoint=program,
        command=tuple(rest),
        environment={"PYTHONPATH": f"/gateway/{PACKAGE_FILE}"},
        mounts=(
            Mount("./fleet.json", "/gateway/fleet.json"),
            Mount(f"./{PACKAGE_FILE}", f"/gateway/{PACKAGE_FILE}"),
            *(() if exported.gateway.keyless else (Mount("./keys/api_keys", "/gateway/api_keys"),)),
            Mount("./keys/admin_key", "/gateway/admin_key"),
            Mount("./state", "/state", writable=True),
        ),
    )
