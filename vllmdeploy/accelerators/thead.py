"""T-Head PPU: counted by device nodes, because we have never seen what ppu-smi prints."""

from __future__ import annotations

import re

from vllmdeploy.accelerators import handing
from vllmdeploy.accelerators.asking import answers, ask, complaint, text_of
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, CardReport, ContainerAccess, PciDevice
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_QUESTIONS = {"nodes": 'for n in /dev/alixpu_ppu[0-9]*; do [ -e "$n" ] && echo "$n"; done; true'}
_NODE = re.compile(r"/dev/alixpu_ppu(\d{1,3})")


def _parse(result: Result) -> CardReport:
    said = answers(result)
    found = filter(None, map(_NODE.fullmatch, text_of(said, "nodes").split()))
    cards = (Card(index=int(node[1]), name="PPU", nodes=(node[0],)) for node in found)
    problem = complaint("the shell", said.get("nodes"), result)
    return CardReport(
        vendor="thead",
        cards=tuple(sorted(cards, key=lambda card: card.index)),
        problem=problem or "memory, use and processes of PPU cards are not read",
    )


def _is_card(device: PciDevice) -> bool:
    # The vendor id is Alibaba's, whose clouds put it on disks and network cards as well.
    return device.pci_class.startswith(("0x1200", "0x0302"))


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    nodes = (node for card in cards for node in card.nodes or (f"/dev/alixpu_ppu{card.index}",))
    return ContainerAccess(
        arguments=handing.options("--device", ("/dev/alixpu", "/dev/alixpu_ctl", *nodes))
    )


ACCELERATOR = Accelerator(
    name="thead",
    title="T-Head PPU",
    verified=False,
    pci_vendors=("0x1ded",),
    device_nodes=("/dev/alixpu_ctl",),
    is_card=_is_card,
    cards=Fact("PPU cards", ask(_QUESTIONS), _parse),
    container=_container,
    visible_variable="CUDA_VISIBLE_DEVICES",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    network_environment=handing.nccl,
)
