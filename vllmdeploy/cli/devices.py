"""`devices`: every card in the fleet."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from vllmdeploy.cli import output
from vllmdeploy.cli.context import World, world

if TYPE_CHECKING:
    from vllmdeploy.workflows.devices import Device

_HEADINGS = ("HOST", "GROUP", "VENDOR", "CARD", "NAME", "MEMORY", "USE", "TEMP", "HELD BY")


def mount(app: typer.Typer) -> None:
    app.command()(devices)


def devices(
    context: typer.Context,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Keep looking, every 2 s.")] = False,
) -> None:
    """Show every card of every host: memory, use, temperature, and who holds it.

    Example: vllmdeploy devices --watch
    """
    from vllmdeploy.workflows import devices as work

    here = world(context)
    with here.session(here.loaded()) as session:
        while True:
            seen = work.devices(session, session.look(for_plan=False))
            if watch and not here.json:
                output.clear()
            _show(here, seen)
            if not watch:
                break
            time.sleep(2)
        for failure in session.failures.values():
            raise failure


def _show(here: World, seen: Sequence[Device]) -> None:
    if here.json:
        output.document({"devices": [device.document() for device in seen]})
    else:
        output.answer(output.table(_HEADINGS, [_row(device) for device in seen]))


def _row(device: Device) -> tuple[str, ...]:
    return (
        device.host,
        device.group,
        device.vendor or "-",
        "-" if device.index is None else str(device.index),
        device.name or "-",
        _memory(device),
        _with_unit(device.utilisation_percent, "%"),
        _with_unit(device.temperature_c, "°C"),
        device.problem or device.holder or ("free" if device.usable else "not ours to use"),
    )


def _with_unit(value: int | None, unit: str) -> str:
    return "-" if value is None else f"{value} {unit}"


def _memory(device: Device) -> str:
    if device.memory_total_mib is None:
        return "-"
    used = "?" if device.memory_used_mib is None else f"{device.memory_used_mib / 1024:.1f}"
    return f"{used} of {device.memory_total_mib / 1024:.1f} GiB"
