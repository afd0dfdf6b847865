"""No cards: vLLM's CPU backend, and what a host's memory offers it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllmdeploy.accelerators import handing
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, CardReport, ContainerAccess, Fabric
from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.errors import last_line

_TOTAL = re.compile(r"^MemTotal:\s+(\d{1,15}) kB$", re.MULTILINE)


def _parse(result: Result) -> CardReport:
    found = _TOTAL.search(result.stdout)
    if not result.ok or not found:
        return CardReport(
            vendor="cpu", problem=f"/proc/meminfo could not be read: {last_line(result.output)}"
        )
    return CardReport(vendor="cpu", host_memory_mib=int(found[1]) // 1024)


def declared(report: CardReport, count: int) -> tuple[Card, ...]:
    """As many ranks as the settings declare, each with its share of the host's memory."""
    memory = report.host_memory_mib
    share = memory // count if memory is not None and count else None
    return tuple(Card(index=index, name="CPU", memory_total_mib=share) for index in range(count))


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    # The engine binds threads to cores and memory to NUMA nodes, which Docker's profile forbids.
    return ContainerAccess(
        arguments=("--security-opt", "seccomp=unconfined", "--cap-add", "SYS_NICE")
    )


def _network(fabric: Fabric) -> Mapping[str, str]:
    return handing.plain_interfaces(fabric)


ACCELERATOR = Accelerator(
    name="cpu",
    title="CPU",
    verified=True,
    pci_vendors=(),
    device_nodes=(),
    cards=Fact("host memory", Command(("cat", "/proc/meminfo"), limit_s=10), _parse),
    container=_container,
    ray_resource="GPU",  # our platform for CPU over Ray books its ranks as GPUs
    ray_flags=handing.ray_gpus,
    # vllmdeploy.node.cpu_platform is that platform; ranks of several hosts are not bound to cores
    # by one plan.
    ray_environment={"VLLMDEPLOY_CPU_PLATFORM": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    # By itself each engine would bind to the same first cores.
    instance_environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    network_environment=_network,
    default_image="vllm/vllm-openai-cpu:v0.33.0-x86_64",
)
