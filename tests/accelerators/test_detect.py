from __future__ import annotations

import pytest

from tests.accelerators.answering import answered
from vllmdeploy.accelerators import registry
from vllmdeploy.accelerators.registry import PRESENCE, Choice, choose, completed
from vllmdeploy.core.card import Card, CardReport, PciDevice, Presence
from vllmdeploy.core.command import Result


def pci(vendor: str, pci_class: str, address: str = "0000:18:00.0", rest: str = "- - -") -> str:
    return f"pci {address} {vendor} {pci_class} 0x2330 {rest}"


def host(*lines: str, nodes: str = "") -> Presence:
    return PRESENCE.parse(answered(pci="\n".join(lines), nodes=nodes))


def test_a_line_of_sys_becomes_a_device() -> None:
    line = pci("0x1002", "0x120000", rest="206141652992 17985175552 94 /dev/dri/card9")
    assert host(line, nodes="/dev/kfd") == Presence(
        devices=(
            PciDevice(
                address="0000:18:00.0",
                vendor="0x1002",
                pci_class="0x120000",
                device="0x2330",
                nodes=("/dev/dri/card9",),
                memory_total_mib=196592,
                memory_used_mib=17152,
                utilisation_percent=94,
            ),
        ),
        nodes=("/dev/kfd",),
    )


@pytest.mark.parametrize(
    "line",
    [
        "",
        "pci",
        "pci 0000:18:00.0 0x10de",
        "pci $(reboot) 0x10de 0x030200 0x2330 - - -",
        "pci 0000:18:00.0 nvidia 0x030200 0x2330 - - -",
        "Permission denied",
    ],
)
def test_what_is_not_a_line_of_ours_is_no_device(line: str) -> None:
    assert host(line) == Presence()


def test_a_host_that_answers_nothing_has_a_problem_and_no_vendor() -> None:
    silent = PRESENCE.parse(Result(1, "", "sh: Permission denied"))
    assert choose(silent) == Choice(
        vendor="cpu", problem="/sys/bus/pci could not be read: sh: Permission denied"
    )


H100 = pci("0x10de", "0x030200")


def test_one_vendor_with_its_driver_is_chosen_with_its_cards() -> None:
    second = pci("0x10de", "0x030200", "0000:2a:00.0")
    choice = choose(host(H100, second, nodes="/dev/nvidiactl"))
    assert (choice.vendor, len(choice.devices), choice.problem) == ("nvidia", 2, "")


def test_sound_usb_and_bridges_of_a_card_are_not_cards() -> None:
    parts = [
        pci("0x10de", one, f"0000:18:00.{n}") for n, one in enumerate(("0x040300", "0x0c0330"))
    ]
    nvswitch = pci("0x10de", "0x068000", "0000:c1:00.0")
    assert choose(host(*parts, nvswitch)) == Choice(vendor="cpu")


def test_a_host_without_cards_is_a_cpu_host() -> None:
    assert choose(host()) == Choice(vendor="cpu")


def test_cards_without_a_driver_are_said() -> None:
    choice = choose(host(H100))
    assert choice.problem == (
        "1 NVIDIA card on the PCI bus, but there is no /dev/nvidiactl: is the driver loaded?"
    )


def test_nodes_prove_a_vendor_where_pci_shows_nothing() -> None:
    assert choose(host(nodes="/dev/nvidiactl")) == Choice(vendor="nvidia")


def test_the_settings_win_over_what_is_there() -> None:
    there = host(H100, nodes="/dev/nvidiactl")
    assert choose(there, wanted="cpu") == Choice(vendor="cpu")
    assert choose(there, wanted="auto").vendor == "nvidia"


def test_an_unknown_vendor_lists_those_that_exist() -> None:
    known = ", ".join(registry.VENDORS)
    assert choose(host(), wanted="nvdia") == Choice(
        vendor="cpu", problem=f"accelerator=nvdia is not known; there are: {known}"
    )


def test_cards_that_the_tool_did_not_name_are_shown_with_the_reason() -> None:
    choice = choose(host(H100, nodes="/dev/nvidiactl"))
    reason = "nvidia-smi gave no answer in time: the driver may hang (see dmesg)"
    assert completed(CardReport(vendor="nvidia", problem=reason), choice) == CardReport(
        vendor="nvidia",
        cards=(Card(index=0, bus_id="0000:18:00.0", problem=reason),),
        problem=reason,
    )


def test_a_good_report_is_left_as_it_is() -> None:
    report = CardReport(vendor="nvidia", cards=(Card(index=0),))
    assert completed(report, choose(host(H100, nodes="/dev/nvidiactl"))) == report


def test_the_question_is_one_command_without_a_vendor_tool() -> None:
    text = str(PRESENCE.command)
    assert "nvidia-smi" not in text
    assert "0x10de" in text
