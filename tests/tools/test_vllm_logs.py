from __future__ import annotations

import subprocess
from pathlib import Path

from vllmdeploy.tools.vllm_logs import Labelled, read

HOSTS = {"10.0.0.1": "gpu-01", "10.0.0.2": "gpu-2"}


def shown(text: str, *engines: str) -> list[str]:
    labelled = Labelled("gpu-01", engines, HOSTS, 6)
    return [line for said in text.splitlines() for line in labelled.lines(said)]


def said_by(folder: Path, *engines: str) -> str:
    command = read(str(folder), engines, tail=2, follow=False)
    return subprocess.run(command.argv, capture_output=True, text=True, check=True).stdout


def test_a_rank_of_another_host_is_shown_with_that_hosts_name(tmp_path: Path) -> None:
    (tmp_path / "m.log").write_text(
        "dropped\n(EngineCore pid=1) (RayWorkerProc pid=7, ip=10.0.0.2) loading\nready\n"
    )
    assert shown(said_by(tmp_path, "m"), "m") == [
        "gpu-2  | (EngineCore pid=1) (RayWorkerProc pid=7, ip=10.0.0.2) loading",
        "gpu-01 | ready",
    ]


def test_engines_of_one_host_are_told_apart_and_blank_lines_stay(tmp_path: Path) -> None:
    (tmp_path / "m.log").write_text("\none\n")
    (tmp_path / "m.2.log").write_text("==> foreign.log <==\n(x pid=1, ip=9.9.9.9) two\n")
    assert shown(said_by(tmp_path, "m", "m.2", "m.3"), "m", "m.2", "m.3") == [
        "gpu-01 m |",
        "gpu-01 m | one",
        "gpu-01 m.2 | ==> foreign.log <==",
        "gpu-01 m.2 | (x pid=1, ip=9.9.9.9) two",
    ]


def test_a_host_that_ran_none_of_them_says_nothing(tmp_path: Path) -> None:
    assert said_by(tmp_path, "m") == ""
    assert said_by(tmp_path / "none", "m") == ""
