"""The scripts under a real shell, with tools made up for the purpose."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from vllmdeploy.accelerators import pci
from vllmdeploy.accelerators.asking import answers, ask
from vllmdeploy.accelerators.registry import VENDORS
from vllmdeploy.core.command import Command, Result


def run(command: Command, tools: Path) -> Result:
    done = subprocess.run(
        command.argv,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{tools}{os.pathsep}/usr/bin:/bin"},
    )
    return Result(done.returncode, done.stdout, done.stderr)


def tool(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_each_question_keeps_its_own_answer_and_status(tmp_path: Path) -> None:
    said = answers(run(ask({"one": "echo a b; (exit 3)", "two": "no-such-tool-here"}), tmp_path))
    assert (said["one"].text, said["one"].status) == ("a b", 3)
    assert said["two"].missing


def test_a_host_without_the_tool_is_told_so(tmp_path: Path) -> None:
    for vendor in VENDORS.values():
        report = vendor.cards.parse(run(vendor.cards.command, tmp_path))
        assert report.cards == ()
        if vendor.name not in ("cpu", "thead"):
            assert "was not found on this host" in report.problem, vendor.name


def test_a_driver_that_does_not_know_mig_is_asked_again(tmp_path: Path) -> None:
    tool(
        tmp_path,
        "nvidia-smi",
        """case "$*" in
        *mig.mode*) echo 'Field "mig.mode.current" is not a valid field to query.'; exit 2 ;;
        *query-gpu*)
            echo "index, name, memory.total [MiB], memory.used [MiB], driver_version"
            echo "0, Tesla P40, 22919, 10, 440.33.01" ;;
        *) echo "gpu_uuid, pid, process_name, used_gpu_memory [MiB]" ;;
        esac""",
    )
    report = VENDORS["nvidia"].cards.parse(run(VENDORS["nvidia"].cards.command, tmp_path))
    assert report.problem == ""
    assert [(card.name, card.memory_total_mib) for card in report.cards] == [("Tesla P40", 22919)]
    assert report.driver_version == "440.33.01"


def test_slices_are_listed_only_where_a_card_is_cut(tmp_path: Path) -> None:
    tool(
        tmp_path,
        "nvidia-smi",
        """case "$*" in
        -L) echo "GPU 0: H100 (UUID: GPU-1)"
            echo "  MIG 1g.20gb     Device  0: (UUID: MIG-1)" ;;
        *query-gpu*)
            echo "index, uuid, name, memory.total [MiB], mig.mode.current, driver_version"
            echo "0, GPU-1, H100, 81559, Enabled, 550.54" ;;
        esac""",
    )
    (card,) = VENDORS["nvidia"].cards.parse(run(VENDORS["nvidia"].cards.command, tmp_path)).cards
    assert card.problem.endswith("(its slices: 1g.20gb MIG-1)")


def test_sys_is_read_with_the_shell_alone(tmp_path: Path) -> None:
    card = tmp_path / "devices" / "0000:18:00.0"
    (card / "drm" / "renderD128").mkdir(parents=True)
    (card / "drm" / "card1").mkdir()
    for name, text in {"vendor": "0x1d94", "class": "0x060000", "device": "0x6210"}.items():
        (card / name).write_text(f"{text}\n")
    (card / "mem_info_vram_total").write_text("68702699520\n")
    other = tmp_path / "devices" / "0000:00:00.0"
    other.mkdir()
    (other / "vendor").write_text("0x8086\n")
    text = pci.SHELL.replace("/sys/bus/pci", str(tmp_path))
    said = answers(run(ask({"pci": text}, "0x10de 0x1d94"), Path("/nonexistent")))
    assert said["pci"].text == (
        "pci 0000:18:00.0 0x1d94 0x060000 0x6210 68702699520 - - /dev/dri/card1 /dev/dri/renderD128"
    )
    assert said["pci"].ok
