"""One host's Ray node, complete: addresses, ports, cards, environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from vllmdeploy.accelerators import handing
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, ContainerAccess, Fabric
from vllmdeploy.core.layout import RAY_AUTH_FILE, Layout
from vllmdeploy.core.spec import NodeSpec
from vllmdeploy.plan.cards import RayShare
from vllmdeploy.plan.network import Place
from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.preflight import node_name, role_of
from vllmdeploy.plan.wanted import Executor, Wanted
from vllmdeploy.tools import ray

# Ray's defaults find a dead host after 15 to 65 s; on one network this takes 5 to 20.
_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "5",
}
# Loading weights fills the page cache, which Ray's memory monitor takes for a leak.
_RAY_QUIET = {"RAY_memory_monitor_refresh_ms": "0"}
# Ray's own end, and what an engine without requests needs for its own.
WARDEN_RESERVE_S = 30
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Models are brought to the hosts by manifest; nothing is fetched behind our back.
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One host of a group with everything decided about it."""

    found: FoundHost
    accelerator: Accelerator
    share: RayShare
    place: Place
    head: Place
    token: bool
    executor: Executor = "ray"
    stands_in_for: str = ""

    @property
    def name(self) -> str:
        return self.found.host.name

    @property
    def layout(self) -> Layout:
        return self.found.access.layout

    @property
    def fabric(self) -> Fabric:
        return Fabric(
            ip=self.place.ip,
            interface=self.place.interface,
            rdma_devices=self.found.links.rdma,
        )

    def container_access(self, *, by_cdi: bool) -> ContainerAccess:
        """The cards, and the RDMA devices where the fabric has live ones."""
        if not self.share.cards:
            return ContainerAccess()
        give = handing.by_cdi if by_cdi else _by_vendor
        access = give(self.accelerator, self.share.cards, self.share.all_of_them)
        rdma = handing.rdma_arguments(self.fabric)
        return replace(access, arguments=(*access.arguments, *rdma))


def _by_vendor(
    accelerator: Accelerator, cards: tuple[Card, ...], all_of_them: bool
) -> ContainerAccess:
    return accelerator.container(cards, all_of_them)


def node_spec(wanted: Wanted, member: Member, *, generation: int) -> NodeSpec:
    found, share = member.found, member.share
    return NodeSpec(
        name=node_name(wanted, found),
        cluster=wanted.cluster,
        group=found.host.group,
        role=role_of(found),
        host=member.name,
        ip=member.place.ip,
        command=_ray(wanted, member) if member.executor == "ray" else (),
        ray_address=f"{member.head.ip}:{wanted.ports.gcs}" if member.executor == "ray" else "",
        environment=_environment(wanted, member),
        cards=tuple(card.index for card in share.cards),
        ray_cards=share.declared,
        stop_limit_s=wanted.drain_s + WARDEN_RESERVE_S,
        package=wanted.package,
        generation=generation,
        stands_in_for=member.stands_in_for,
    )


def _ray(wanted: Wanted, member: Member) -> tuple[str, ...]:
    found, share = member.found, member.share
    flags = member.accelerator.ray_flags(share.declared) + _cpus(wanted)
    if role_of(found) == "ray-head":
        return ray.start_head(ip=member.place.ip, name=member.name, ports=wanted.ports, cards=flags)
    return ray.start_worker(
        head_ip=member.head.ip,
        ip=member.place.ip,
        name=member.name,
        ports=wanted.ports,
        cards=flags,
    )


def _cpus(wanted: Wanted) -> tuple[str, ...]:
    return () if wanted.ray_cpus is None else (f"--num-cpus={wanted.ray_cpus}",)


def _environment(wanted: Wanted, member: Member) -> Mapping[str, str]:
    """Every variable that differs between hosts is set on each: vLLM's ranks take what is missing
    from the driver, and the driver's interface names are wrong on the others."""
    return {
        "VLLM_HOST_IP": member.place.ip,
        **member.accelerator.network_environment(member.fabric),
        **member.accelerator.ray_environment,
        **(_ray_environment(wanted, member) if member.executor == "ray" else {}),
        **QUIET,
        **proxies(member),
        **wanted.environment,
    }


def _ray_environment(wanted: Wanted, member: Member) -> Mapping[str, str]:
    return {
        **(wanted.ports.of_head_by_environment if member.found.host.head else {}),
        "RAY_AUTH_MODE": "token" if member.token else "disabled",
        **_HEALTH_CHECKS,
        **_RAY_QUIET,
    }


def proxies(member: Member) -> dict[str, str]:
    """The host's proxies, and that the fleet itself is never asked through them.

    The network is named rather than its hosts, so that a new host changes nothing on the others.
    """
    link = member.found.links.with_ip(member.place.ip)
    nearby = (str(link.network),) if link else ()
    direct = ("localhost", "127.0.0.1", member.head.ip, member.place.ip, *nearby)
    text = ",".join(dict.fromkeys(direct))
    system = member.found.system
    passed = dict(proxy for proxy in system.proxies if proxy not in system.proxies_with_password)
    return {**passed, "NO_PROXY": text, "no_proxy": text}


def token_path(folder: str) -> dict[str, str]:
    return {"RAY_AUTH_TOKEN_PATH": f"{folder}/{RAY_AUTH_FILE}"}
