"""All vendors by name, and the one question that tells which of them a host has."""

from __future__ import annotations

from collections.abc import Mapping

from vllmdeploy.accelerators import (
    amd,
    ascend,
    cambricon,
    cpu,
    detect,
    gaudi,
    hygon,
    iluvatar,
    intel,
    metax,
    mthreads,
    nvidia,
    thead,
)
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.accelerators.detect import Choice, completed
from vllmdeploy.core.card import Presence
from vllmdeploy.core.fact import Fact

__all__ = ["PRESENCE", "VENDORS", "Choice", "choose", "completed", "named"]

_MODULES = (
    *(nvidia, hygon, amd, ascend, cpu),
    *(intel, gaudi, mthreads, metax, iluvatar, cambricon, thead),
)
VENDORS: Mapping[str, Accelerator] = {
    module.ACCELERATOR.name: module.ACCELERATOR for module in _MODULES
}
PRESENCE: Fact[Presence] = detect.presence(VENDORS.values())


def named(name: str) -> Accelerator:
    return VENDORS[name]


def choose(found: Presence, *, wanted: str | None = None) -> Choice:
    """Which of all vendors a host is driven as."""
    return detect.choose(found, VENDORS, wanted=wanted)
