"""AMD: amd-smi in both shapes of its JSON, else rocm-smi, and ROCm's devices."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from vllmdeploy.accelerators import drm, handing, lenient_json, pci, reading, smi_json
from vllmdeploy.accelerators.asking import Answer, answers, ask, complaint, text_of, unreadable
from vllmdeploy.accelerators.base import Accelerator, is_compute
from vllmdeploy.core.card import Card, CardProcess, CardReport, ContainerAccess, PciDevice
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "amd-smi"
_PCI_VENDOR = "0x1002"
# What needs no tool comes first: it is there even when the tool hangs.
_QUESTIONS = {
    "pci": pci.SHELL,
    "driver": "cat /sys/module/amdgpu/version",
    "cards": "amd-smi metric --json; status=$?; (exit $status)",
    "list": "[ $status -eq 127 ] || amd-smi list --json",
    "static": "[ $status -eq 127 ] || amd-smi static --asic --board --json",
    "processes": "[ $status -eq 127 ] || amd-smi process --json",
    "rocm": """\
[ $status -eq 0 ] || rocm-smi --showproductname --showuniqueid --showbus --showmeminfo vram \
--showuse --showtemp --json""",
}
_HEAT = ("hotspot", "edge", "mem")


def _parse(result: Result) -> CardReport:
    said = answers(result)
    cards, problem = _cards(said, result)
    devices = tuple(filter(_is_card, pci.parse(text_of(said, "pci"))))
    if not cards and devices:
        cards = pci.as_cards(devices, problem=problem if result.timed_out else "")
        problem += "; read from /sys: no names, no processes"
    driver = said.get("driver")
    return CardReport(
        vendor="amd",
        cards=drm.joined(cards, devices),
        driver_version=reading.words(driver.text) if driver and driver.ok else "",
        problem=problem,
    )


def _cards(said: Mapping[str, Answer], result: Result) -> tuple[tuple[Card, ...], str]:
    text = text_of(said, "cards")
    metrics, whole = lenient_json.parse(text)
    cards = tuple(map(_card, _entries(metrics)))
    if not cards:
        cards = smi_json.cards(text_of(said, "rocm"))[0]
        if cards:
            return cards, ""
        return (), complaint(_TOOL, said.get("cards"), result) or unreadable(_TOOL, text)
    listed = _by_card(said, "list")
    static = _by_card(said, "static")
    held = _by_card(said, "processes")
    completed = tuple(
        _completed(card, listed.get(card.index), static.get(card.index), held.get(card.index))
        for card in cards
    )
    return completed, "" if whole else f"{_TOOL} stopped in the middle of its answer"


def _entries(value: object) -> Iterator[Mapping[str, object]]:
    """Older releases answer with the bare list, ROCm 7 with `gpu_data` around it."""
    items = reading.sequence(reading.mapping(value).get("gpu_data", value))
    return (entry for entry in map(reading.mapping, items) if _index(entry) is not None)


def _index(entry: Mapping[str, object]) -> int | None:
    return reading.amount(entry.get("gpu"))


def _by_card(said: Mapping[str, Answer], name: str) -> Mapping[int, Mapping[str, object]]:
    value, _ = lenient_json.parse(text_of(said, name))
    return {index: entry for entry in _entries(value) if (index := _index(entry)) is not None}


def _card(entry: Mapping[str, object]) -> Card:
    memory = reading.mapping(entry.get("mem_usage"))
    heat = reading.mapping(entry.get("temperature"))
    return Card(
        index=_index(entry) or 0,
        memory_total_mib=_quantity(memory.get("total_vram")),
        memory_used_mib=_quantity(memory.get("used_vram")),
        utilisation_percent=_quantity(reading.mapping(entry.get("usage")).get("gfx_activity")),
        temperature_c=_first(_quantity(heat.get(where)) for where in _HEAT),
    )


def _quantity(value: object) -> int | None:
    """`{"value": 94, "unit": "%"}`, or "N/A"."""
    return reading.amount(reading.mapping(value).get("value", value))


def _first(values: Iterable[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)


def _completed(
    card: Card,
    listed: Mapping[str, object] | None,
    static: Mapping[str, object] | None,
    held: Mapping[str, object] | None,
) -> Card:
    listed, static = listed or {}, static or {}
    asic, board = reading.mapping(static.get("asic")), reading.mapping(static.get("board"))
    return replace(
        card,
        name=reading.words(asic.get("market_name", board.get("product_name", ""))),
        uuid=reading.identity(listed.get("uuid", "")),
        bus_id=reading.bus_id(str(listed.get("bdf", ""))),
        processes=tuple(_processes(reading.sequence((held or {}).get("process_list")))),
    )


def _processes(listed: Sequence[object]) -> Iterator[CardProcess]:
    """Where nothing runs, there is a sentence in place of an entry."""
    for entry in listed:
        about = reading.mapping(reading.mapping(entry).get("process_info"))
        pid = reading.amount(about.get("pid"))
        if pid is None:
            continue
        memory = reading.mapping(reading.mapping(about.get("memory_usage")).get("vram_mem"))
        yield CardProcess(
            pid=pid,
            name=reading.words(about.get("name", "")),
            memory_mib=_mebibytes(memory),
        )


def _mebibytes(memory: Mapping[str, object]) -> int | None:
    """amd-smi counts a process in bytes unless it says otherwise."""
    in_mib = str(memory.get("unit", "B")).upper() in ("MB", "MIB")
    value = memory.get("value", "")
    return reading.amount(value) if in_mib else reading.mebibytes(value)


def _is_card(device: PciDevice) -> bool:
    return device.vendor == _PCI_VENDOR and is_compute(device) and drm.large_enough(device)


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    # Without a card's render node the runtime does not see the card; where the nodes are not
    # known, the variable chooses. Never ROCR_VISIBLE_DEVICES: Ray refuses to start with it.
    apart = not all_of_them and all(card.nodes for card in cards)
    nodes = [node for card in cards for node in card.nodes] if apart else ["/dev/dri"]
    return ContainerAccess(
        arguments=(
            *handing.options("--device", ("/dev/kfd", *nodes)),
            *("--group-add", "video", "--cap-add", "SYS_PTRACE"),
            *("--security-opt", "seccomp=unconfined"),
        ),
        environment=handing.chosen("HIP_VISIBLE_DEVICES", cards, all_of_them or apart),
    )


ACCELERATOR = Accelerator(
    name="amd",
    title="AMD ROCm",
    verified=True,
    pci_vendors=(_PCI_VENDOR,),
    device_nodes=("/dev/kfd",),
    nodes_are_proof=False,
    is_card=_is_card,
    cards=Fact("AMD cards", ask(_QUESTIONS, _PCI_VENDOR, limit_s=45), _parse),
    container=_container,
    cdi_kind="amd.com/gpu",
    visible_variable="HIP_VISIBLE_DEVICES",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    ray_environment=handing.KEEP_HIP_VISIBLE,
    network_environment=handing.nccl,
    default_image="vllm/vllm-openai-rocm:v0.33.0",
)
