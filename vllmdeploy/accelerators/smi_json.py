"""The JSON of rocm-smi and of its relative hy-smi: one object a card, keys that vary by release."""

from __future__ import annotations

import re
from collections.abc import Mapping

from vllmdeploy.accelerators import lenient_json, reading
from vllmdeploy.core.card import Card

_CARD = re.compile(r"card(\d{1,3})")
_NAMES = ("Card Series", "Card series", "Card Model", "Card model", "Card SKU", "Device Name")
_BUSY = ("HCU use (%)", "GPU use (%)", "DCU use (%)", "GPU Utilization (%)", "GPU Usage (%)")
_TOTAL = ("vram Total Memory (MiB)",)
_TOTAL_BYTES = ("VRAM Total Memory (B)", "vram Total Memory (B)")
_USED = ("vram Total Used Memory (MiB)",)
_USED_BYTES = ("VRAM Total Used Memory (B)", "vram Total Used Memory (B)")
_HEAT = tuple(f"Temperature (Sensor {where}) (C)" for where in ("junction", "core", "edge"))


def cards(text: str) -> tuple[tuple[Card, ...], bool]:
    """The cards, and whether the text came to its end."""
    value, whole = lenient_json.parse(text)
    found = (
        _card(int(name[1]), reading.mapping(values))
        for key, values in reading.mapping(value).items()
        if (name := _CARD.fullmatch(key))
    )
    return tuple(sorted(found, key=lambda card: card.index)), whole


def _card(index: int, values: Mapping[str, object]) -> Card:
    total = reading.amount(_first(values, _TOTAL))
    used = reading.amount(_first(values, _USED))
    return Card(
        index=index,
        name=reading.words(_first(values, _NAMES)),
        uuid=reading.identity(_first(values, ("Unique ID", "Unique Id"))),
        bus_id=reading.bus_id(_first(values, ("PCI Bus",))),
        memory_total_mib=reading.mebibytes(_first(values, _TOTAL_BYTES))
        if total is None
        else total,
        memory_used_mib=reading.mebibytes(_first(values, _USED_BYTES)) if used is None else used,
        utilisation_percent=reading.amount(_first(values, _BUSY)),
        temperature_c=reading.number(_first(values, _HEAT)),
    )


def _first(values: Mapping[str, object], keys: tuple[str, ...]) -> str:
    return next((str(values[key]) for key in keys if key in values), "")
