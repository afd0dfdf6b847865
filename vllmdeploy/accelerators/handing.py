"""What vendors share in handing cards over: Ray flags, CDI names, network variables."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping

from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, ContainerAccess, Fabric

# Ray would narrow HIP_VISIBLE_DEVICES for each rank while vLLM, before it set these itself, chose
# the card by CUDA_VISIBLE_DEVICES: `HIP error: invalid device ordinal`.
KEEP_HIP_VISIBLE: Mapping[str, str] = {
    "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES": "1",
    "RAY_EXPERIMENTAL_NOSET_ROCR_VISIBLE_DEVICES": "1",
}


def options(flag: str, values: Iterable[str]) -> tuple[str, ...]:
    """One flag repeated: `--device a --device b`."""
    return tuple(part for value in values for part in (flag, value))


def read_only(*paths: str) -> tuple[str, ...]:
    """The host's own files. Not `-v`: that would make an empty folder where one is missing."""
    return options("--mount", (f"type=bind,source={path},target={path},readonly" for path in paths))


def indices(cards: Iterable[Card]) -> str:
    return ",".join(str(card.index) for card in cards)


def chosen(variable: str, cards: tuple[Card, ...], all_of_them: bool) -> Mapping[str, str]:
    """The variable that narrows a container which sees every card down to some of them."""
    return {} if all_of_them else {variable: indices(cards)}


def ray_gpus(count: int) -> tuple[str, ...]:
    return (f"--num-gpus={count}",)


def ray_custom(resource: str) -> Callable[[int], tuple[str, ...]]:
    """Cards that Ray counts under a name of their own. Zero is said too: else Ray counts itself."""

    def flags(count: int) -> tuple[str, ...]:
        return ("--resources=" + json.dumps({resource: count}),)

    return flags


def by_cdi(accelerator: Accelerator, cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    """The same cards by CDI names, for engines set up that way (Docker 25, podman)."""
    if not accelerator.cdi_kind:
        return accelerator.container(cards, all_of_them)
    names = ("all",) if all_of_them else tuple(str(card.index) for card in cards)
    return ContainerAccess(
        arguments=options("--device", (f"{accelerator.cdi_kind}={name}" for name in names)),
        environment=accelerator.container(cards, True).environment,
    )


def rdma_arguments(fabric: Fabric) -> tuple[str, ...]:
    """The RDMA devices and the right to pin memory for them; the memlock limit is for all nodes."""
    if not fabric.rdma_devices:
        return ()
    return ("--device", "/dev/infiniband", "--cap-add", "IPC_LOCK")


def process_environment(accelerator: Accelerator, cards: tuple[Card, ...]) -> Mapping[str, str]:
    """For an engine outside a container: the variable alone decides which cards it sees."""
    return {accelerator.visible_variable: indices(cards)} if accelerator.visible_variable else {}


def plain_interfaces(fabric: Fabric) -> Mapping[str, str]:
    """Gloo and TensorPipe take a bare name; without one they guess, often docker0."""
    if not fabric.interface:
        return {}
    return {"GLOO_SOCKET_IFNAME": fabric.interface, "TP_SOCKET_IFNAME": fabric.interface}


def nccl(fabric: Fabric) -> Mapping[str, str]:
    """NCCL and RCCL. `=` asks for exact names: bare ones are prefixes, and eth1 means eth10 too."""
    variables = dict(plain_interfaces(fabric))
    if fabric.interface:
        variables["NCCL_SOCKET_IFNAME"] = f"={fabric.interface}"
    if fabric.rdma_devices:
        variables["NCCL_IB_HCA"] = "=" + ",".join(fabric.rdma_devices)
    return variables


def mccl(fabric: Fabric) -> Mapping[str, str]:
    """MetaX and Moore Threads both call theirs MCCL. Only the bare forms were seen in use."""
    variables = dict(plain_interfaces(fabric))
    if fabric.interface:
        variables["MCCL_SOCKET_IFNAME"] = fabric.interface
    if fabric.rdma_devices:
        variables["MCCL_IB_HCA"] = ",".join(fabric.rdma_devices)
    return variables
