"""Exported units and firewall lines, put to the programs that they are written for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.workflows.test_export_files import export, loaded
from vllmdeploy.workflows.export_files import firewall_lines


def test_systemd_finds_nothing_wrong_with_the_exported_units(tmp_path: Path) -> None:
    export(tmp_path, "systemd", VLLM_PYTHON=sys.executable)
    for host in ("gpu-01", "gpu-02"):
        units = sorted((tmp_path / "out" / host).glob("*.service"))
        done = subprocess.run(
            ("systemd-analyze", "verify", *units), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_iptables_takes_the_exported_lines(tmp_path: Path) -> None:
    """In a network of its own, which ends with the test."""
    lines = firewall_lines(loaded(tmp_path, API_ALLOW="10.1.0.0/16"), ("iptables",))["gpu-01"]
    script = f"set -e\n{lines}\niptables -S INPUT"
    done = subprocess.run(
        ("unshare", "--net", "sh", "-c", script), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (
        "-A INPUT -s 10.1.0.0/16 -p tcp -m tcp --dport 8000 -m comment --comment vllmdeploy"
        in done.stdout
    )
    assert done.stdout.count("-s 10.0.0.2/32") == 8
