"""NVIDIA: nvidia-smi's tables, `--gpus`, NCCL, and what a driver version limits."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from vllmdeploy.accelerators import handing, reading
from vllmdeploy.accelerators.asking import answers, ask, complaint, text_of, unreadable
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, CardProcess, CardReport, ContainerAccess
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "nvidia-smi"
# With headers, so that the answer says itself what its columns are; drivers before 450 refuse
# the longer list, because they do not know mig.mode.current.
_SHORT = "index,uuid,name,pci.bus_id,memory.total,memory.used,utilization.gpu,temperature.gpu"
_LONG = f"{_SHORT},compute_mode,mig.mode.current,driver_version"
_QUESTIONS = {
    "cards": f"""\
text=$({_TOOL} --query-gpu={_LONG} --format=csv,nounits 2>&1); status=$?
case $text in *"not a valid field"*)
  text=$({_TOOL} --query-gpu={_SHORT},driver_version --format=csv,nounits 2>&1); status=$?
esac
printf '%s\\n' "$text"
(exit $status)""",
    "slices": f"""case $text in *", Enabled, "*) {_TOOL} -L ;; esac""",
    "processes": f"""\
[ $status -ne 0 ] ||
{_TOOL} --query-compute-apps=gpu_uuid,pid,process_name,used_memory --format=csv,nounits""",
}
_UNIT = re.compile(r"\s*\[[^\]]*\]\s*$")
_BAD_VALUE = re.compile(r"\[?(GPU is lost|Unknown Error|GPU requires reset|ERR!)\]?", re.IGNORECASE)
_LOST = re.compile(r"Unable to determine the device handle for (?:GPU|gpu)[^\n]{0,300}")
_SLICE = re.compile(r"^\s+MIG (\S{1,40})\s+Device\s+\d+:\s+\(UUID: (MIG-[\w/-]{1,80})\)")
_PARENT = re.compile(r"^GPU (\d{1,4}):")


def _parse(result: Result) -> CardReport:
    said = answers(result)
    answer = said.get("cards")
    problem = complaint(_TOOL, answer, result)
    rows = tuple(_rows(text_of(said, "cards")))
    cards = tuple(card for card in map(_card, rows) if card is not None)
    text = text_of(said, "cards")
    if not problem:
        lost = _LOST.search(text)
        problem = lost[0].strip() if lost else "" if cards else unreadable(_TOOL, text)
    slices = _slices(text_of(said, "slices"))
    holders = _processes(text_of(said, "processes"))
    asked = said.get("processes")
    if not problem and asked is not None and asked.status is None:
        problem = f"{_TOOL} did not say in time which processes hold the cards"
    return CardReport(
        vendor="nvidia",
        cards=tuple(_completed(card, holders, slices) for card in cards),
        driver_version=next((reading.words(row.get("driver_version", "")) for row in rows), ""),
        problem=problem,
    )


def _rows(text: str) -> Iterator[Mapping[str, str]]:
    """Rows by column name, units taken off; lines before the header or of another width are not."""
    columns: Sequence[str] = ()
    for line in text.splitlines():
        row = [cell.strip() for cell in line.split(",")]
        if "name" in row and any(cell.startswith("memory.total") for cell in row):
            columns = [_UNIT.sub("", cell) for cell in row]
        elif columns and len(row) == len(columns):
            yield dict(zip(columns, row, strict=True))


def _card(row: Mapping[str, str]) -> Card | None:
    index = reading.amount(row.get("index", ""))
    if index is None:
        return None
    broken = next((found[1] for value in row.values() if (found := _BAD_VALUE.search(value))), "")
    problem = f"nvidia-smi shows an error state: {broken}" if broken else ""
    if not problem and row.get("compute_mode") == "Prohibited":
        problem = f"compute mode is Prohibited; allow it with: nvidia-smi -i {index} -c DEFAULT"
    if not problem and row.get("mig.mode.current") == "Enabled":
        problem = "in MIG mode, and only whole cards are planned"
    return Card(
        index=index,
        name=reading.words(row.get("name", "")),
        uuid=reading.identity(row.get("uuid", "")),
        bus_id=reading.bus_id(row.get("pci.bus_id", "")),
        memory_total_mib=reading.amount(row.get("memory.total", "")),
        memory_used_mib=reading.amount(row.get("memory.used", "")),
        utilisation_percent=reading.amount(row.get("utilization.gpu", "")),
        temperature_c=reading.number(row.get("temperature.gpu", "")),
        problem=problem,
    )


def _completed(
    card: Card, holders: Mapping[str, tuple[CardProcess, ...]], slices: Mapping[int, str]
) -> Card:
    named = f"{card.problem} (its slices: {slices[card.index]})" if card.index in slices else ""
    return replace(
        card,
        processes=holders.get(card.uuid, ()) if card.uuid else (),
        problem=named or card.problem,
    )


def _processes(text: str) -> Mapping[str, tuple[CardProcess, ...]]:
    """By card. A name may hold commas, so it is what lies between the second and the last."""
    found: dict[str, tuple[CardProcess, ...]] = {}
    for line in text.splitlines():
        parts = line.split(", ")
        if len(parts) < 4 or not parts[1].strip().isdecimal():
            continue
        process = CardProcess(
            pid=int(parts[1][:10]),
            name=reading.words(", ".join(parts[2:-1])),
            memory_mib=reading.amount(parts[-1]),
        )
        uuid = parts[0].strip()
        found[uuid] = (*found.get(uuid, ()), process)
    return found


def _slices(text: str) -> Mapping[int, str]:
    found: dict[int, str] = {}
    parent: int | None = None
    for line in text.splitlines():
        if head := _PARENT.match(line):
            parent = int(head[1])
        elif parent is not None and (piece := _SLICE.match(line)):
            before = f"{found[parent]}, " if parent in found else ""
            found[parent] = f"{before}{piece[1]} {piece[2]}"
    return found


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        # Where Docker's default runtime is NVIDIA's, an image's own `all` would apply.
        return ContainerAccess(environment={"NVIDIA_VISIBLE_DEVICES": "void"})
    # Docker reads the value as CSV, so a list of cards needs quotes of its own.
    request = "all" if all_of_them else f'"device={handing.indices(cards)}"'
    return ContainerAccess(
        arguments=("--gpus", request), environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    )


# The newest CUDA that a driver branch brings, newest first: NVIDIA's release notes. What is
# newer than this table is not known to be limited.
_FIRST_UNKNOWN_BRANCH = 595
_CUDA_BY_DRIVER = (
    *((590, "13.1"), (580, "13.0"), (575, "12.9"), (570, "12.8"), (565, "12.7"), (560, "12.6")),
    *((555, "12.5"), (550, "12.4"), (545, "12.3"), (535, "12.2"), (530, "12.1"), (525, "12.0")),
    *((520, "11.8"), (515, "11.7"), (510, "11.6"), (495, "11.5"), (470, "11.4"), (465, "11.3")),
    *((460, "11.2"), (455, "11.1"), (450, "11.0"), (440, "10.2")),
)


def newest_cuda(driver_version: str) -> str:
    """The newest CUDA that a driver runs; nothing where that is not known."""
    branch = re.match(r"(\d{3,4})\.", driver_version)
    if not branch or int(branch[1]) >= _FIRST_UNKNOWN_BRANCH:
        return ""
    return next((cuda for least, cuda in _CUDA_BY_DRIVER if int(branch[1]) >= least), "")


ACCELERATOR = Accelerator(
    name="nvidia",
    title="NVIDIA",
    verified=True,
    pci_vendors=("0x10de",),
    device_nodes=("/dev/nvidiactl",),
    cards=Fact("NVIDIA cards", ask(_QUESTIONS), _parse),
    container=_container,
    cdi_kind="nvidia.com/gpu",
    visible_variable="CUDA_VISIBLE_DEVICES",
    ray_resource="GPU",
    ray_flags=handing.ray_gpus,
    network_environment=handing.nccl,
    toolkit_limit=newest_cuda,
    default_image="vllm/vllm-openai:v0.33.0",
)
