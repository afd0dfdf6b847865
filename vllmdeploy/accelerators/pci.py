"""Cards without any vendor tool: what /sys and /dev show to everybody."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vllmdeploy.accelerators.reading import mebibytes, number
from vllmdeploy.core.card import Card, PciDevice

# Builtins only, so that a host with hundreds of PCI functions answers in milliseconds. `read`
# fails on memory counters of a sleeping card (EBUSY): unknown then, not zero.
SHELL = r"""
one() { value=; { read -r value <"$1"; } 2>/dev/null; }
for d in /sys/bus/pci/devices/*; do
  one "$d/vendor"; vendor=$value
  case " $1 " in *" $vendor "*) ;; *) continue ;; esac
  one "$d/class"; class=$value; one "$d/device"; device=$value
  one "$d/mem_info_vram_total"; total=${value:--}
  one "$d/mem_info_vram_used"; used=${value:--}
  one "$d/gpu_busy_percent"; busy=${value:--}
  nodes=
  for n in "$d"/drm/card[0-9]* "$d"/drm/renderD[0-9]*; do
    [ -e "$n" ] && nodes="$nodes /dev/dri/${n##*/}"
  done
  echo "pci ${d##*/} $vendor ${class:--} ${device:--} $total $used $busy$nodes"
done
true"""

_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_HEX = re.compile(r"0x[0-9a-f]{4,8}")
NODE = re.compile(r"/dev/[A-Za-z0-9_./-]{1,60}")
_FIXED_WORDS = 8


def parse(text: str) -> tuple[PciDevice, ...]:
    """The `pci` lines; what is not a well-formed one is left out."""
    return tuple(device for device in map(_device, text.splitlines()) if device is not None)


def _device(line: str) -> PciDevice | None:
    words = line.split()
    if len(words) < _FIXED_WORDS or words[0] != "pci":
        return None
    address, vendor, pci_class, device, total, used, busy = words[1:_FIXED_WORDS]
    if not (_ADDRESS.fullmatch(address) and _HEX.fullmatch(vendor) and _HEX.fullmatch(pci_class)):
        return None
    return PciDevice(
        address=address,
        vendor=vendor,
        pci_class=pci_class,
        device=device if _HEX.fullmatch(device) else "",
        nodes=tuple(node for node in words[_FIXED_WORDS:] if NODE.fullmatch(node)),
        memory_total_mib=mebibytes(total),
        memory_used_mib=mebibytes(used),
        utilisation_percent=number(busy),
    )


def as_cards(devices: Iterable[PciDevice], *, problem: str = "") -> tuple[Card, ...]:
    """Cards known from /sys alone, numbered in the order of their addresses, as vendor tools do."""
    ordered = sorted(devices, key=lambda device: device.address)
    return tuple(
        Card(
            index=index,
            bus_id=device.address,
            memory_total_mib=device.memory_total_mib,
            memory_used_mib=device.memory_used_mib,
            utilisation_percent=device.utilisation_percent,
            nodes=device.nodes,
            problem=problem,
        )
        for index, device in enumerate(ordered)
    )
