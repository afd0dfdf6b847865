"""Intel Gaudi: hl-smi's table and the habana runtime."""

from __future__ import annotations

from collections.abc import Iterator

from vllmdeploy.accelerators import handing, reading
from vllmdeploy.accelerators.asking import answers, ask, complaint, text_of, unreadable
from vllmdeploy.accelerators.base import Accelerator
from vllmdeploy.core.card import Card, CardReport, ContainerAccess
from vllmdeploy.core.command import Result
from vllmdeploy.core.fact import Fact

_TOOL = "hl-smi"
_COLUMNS = "index,module_id,bus_id,memory.used,temperature.aip"
# hl-smi refuses to run where it cannot write its log.
_QUESTIONS = {
    "cards": f"HABANA_LOGS=${{TMPDIR:-/tmp}} {_TOOL} -Q {_COLUMNS} -f csv,noheader",
}


def _parse(result: Result) -> CardReport:
    said = answers(result)
    text = text_of(said, "cards")
    cards = tuple(_cards(text))
    problem = complaint(_TOOL, said.get("cards"), result)
    if not problem and not cards:
        problem = unreadable(_TOOL, text)
    return CardReport(vendor="gaudi", cards=cards, problem=problem)


def _cards(text: str) -> Iterator[Card]:
    for line in text.splitlines():
        row = [cell.strip() for cell in line.split(",")]
        if len(row) != 5 or not row[0].isdecimal() or not row[1].isdecimal():
            continue
        yield Card(
            # Containers and Ray choose by module id; the index follows the bus and differs.
            index=int(row[1][:4]),
            name="Gaudi",
            bus_id=reading.bus_id(row[2]),
            memory_used_mib=reading.amount(row[3]),
            temperature_c=reading.number(row[4]),
        )


def _container(cards: tuple[Card, ...], all_of_them: bool) -> ContainerAccess:
    if not cards:
        return ContainerAccess()
    return ContainerAccess(
        arguments=("--runtime", "habana", "--cap-add", "SYS_NICE"),
        environment={
            "HABANA_VISIBLE_DEVICES": "all",
            "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
            **handing.chosen("HABANA_VISIBLE_MODULES", cards, all_of_them),
        },
    )


ACCELERATOR = Accelerator(
    name="gaudi",
    title="Intel Gaudi",
    verified=False,
    pci_vendors=("0x1da3",),
    device_nodes=("/dev/accel/accel*",),
    nodes_are_proof=False,
    cards=Fact("Gaudi cards", ask(_QUESTIONS), _parse),
    container=_container,
    visible_variable="HABANA_VISIBLE_MODULES",
    ray_resource="HPU",
    ray_flags=handing.ray_custom("HPU"),
    ray_environment={"RAY_EXPERIMENTAL_NOSET_HABANA_VISIBLE_MODULES": "1"},
    network_environment=handing.plain_interfaces,
)
