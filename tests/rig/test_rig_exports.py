"""Exported files and firewall lines, put to the programs that they are written for."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it brings no types, and only tests read YAML

from tests.workflows.test_export_files import export, loaded
from tests.workflows.test_export_mps import written
from vllmdeploy.accelerators.registry import VENDORS
from vllmdeploy.tools.firewall import Opening, applied
from vllmdeploy.workflows.export_firewall import firewall_lines


def compose() -> tuple[str, ...]:
    """Docker's plugin, else the program of old; neither: empty."""
    asked = subprocess.run(("sh", "-c", "docker compose version"), capture_output=True, check=False)
    if asked.returncode == 0:
        return ("docker", "compose")
    return ("docker-compose",) if shutil.which("docker-compose") else ()


COMPOSE = compose()


def test_systemd_finds_nothing_wrong_with_the_exported_units(tmp_path: Path) -> None:
    export(tmp_path, "systemd", VLLM_PYTHON=sys.executable)
    for host in ("gpu-01", "gpu-02"):
        units = sorted((tmp_path / "out" / host).glob("*.service"))
        done = subprocess.run(
            ("systemd-analyze", "verify", *units), capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        for unit in units:
            # Below 5.0 systemd calls it OK.
            words = ("systemd-analyze", "security", "--offline=yes", "--threshold=50", "--no-pager")
            judged = subprocess.run((*words, unit), capture_output=True, text=True, check=False)
            assert judged.returncode == 0, judged.stdout


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


def composed(folder: Path) -> dict[str, dict[str, object]]:
    """The services as Compose itself has read them."""
    words = (*COMPOSE, "--file", str(folder / "compose.yaml"), "config")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    services: dict[str, dict[str, object]] = yaml.safe_load(done.stdout)["services"]
    return services


needs_compose = pytest.mark.skipif(
    not COMPOSE, reason="neither `docker compose` nor docker-compose is installed"
)


@needs_compose
@pytest.mark.parametrize("vendor", VENDORS)
def test_compose_takes_the_exported_file_of_every_vendor(tmp_path: Path, vendor: str) -> None:
    export(tmp_path, "compose", ACCELERATOR=vendor, EXTRA_ENV="A=$b C=d#e")
    services = composed(tmp_path / "out/gpu-01")
    assert set(services) == {"Llama-2-7b-1", "Llama-2-7b-3", "gateway"}
    environment = services["Llama-2-7b-1"]["environment"]
    # What it prints can be read again as it is, so the dollar is doubled there too.
    assert isinstance(environment, dict)
    assert (environment["A"], environment["C"]) == ("$$b", "d#e")


@needs_compose
def test_compose_takes_the_seeds_two_engines_on_a_card(tmp_path: Path) -> None:
    written(tmp_path)
    services = composed(tmp_path / "gpu-01")
    first = next(one for name, one in services.items() if name.endswith("-1"))
    assert "/tmp/nvidia-mps/card-0" in json.dumps(first["volumes"])
    assert first["ipc"] == "host"


def test_nft_takes_the_exported_lines(tmp_path: Path) -> None:
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    lines = firewall_lines(loaded(tmp_path, API_ALLOW="10.1.0.0/16,fd00::/64"), ("nft",))["gpu-01"]
    usual = "type filter hook input priority 0; policy drop;"
    script = (
        f"set -e\nnft add table inet filter\nnft 'add chain inet filter input {{ {usual} }}'\n"
        f"{lines}\nnft list chain inet filter input"
    )
    done = subprocess.run(
        ("unshare", "--net", "sh", "-c", script), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'ip saddr 10.1.0.0/16 tcp dport 8000 accept comment "vllmdeploy"' in done.stdout
    assert 'ip6 saddr fd00::/64 tcp dport 8000 accept comment "vllmdeploy"' in done.stdout
    assert "ip saddr 10.0.0.2 tcp dport { 6379, 8001-8004, 8100-8199" in done.stdout


WAY_IN = {
    "nft": "nft add table inet filter\nnft 'add chain inet filter input"
    " { type filter hook input priority 0; policy drop; }'\n",
    "iptables": "",
}
SHOWN = {"nft": "nft list chain inet filter input", "iptables": "iptables -S INPUT"}


@pytest.mark.parametrize("tool", ["nft", "iptables"])
def test_what_is_applied_twice_is_there_once_and_what_is_others_stays(tool: str) -> None:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    others = {
        "nft": "nft add rule inet filter input tcp dport 22 accept comment '\"ssh\"'",
        "iptables": "iptables -A INPUT -p tcp --dport 22 -m comment --comment ssh -j ACCEPT",
    }
    before = Opening(ports=((8001, 8004),), sources=("10.0.0.2",))
    after = Opening(ports=((8001, 8002),), sources=("10.0.0.2",))
    runs = (applied(tool, (before,)), applied(tool, (after,)), applied(tool, (after,)))
    steps = "\n".join(str(run) for run in runs)
    script = f"set -e\n{WAY_IN[tool]}{others[tool]}\n{steps}\n{SHOWN[tool]}"
    done = subprocess.run(
        ("unshare", "--net", "sh", "-c", script), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10.0.0.2") == 1
    assert "8004" not in done.stdout
    assert "ssh" in done.stdout


def test_nft_without_the_usual_chain_fails_and_says_so() -> None:
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    command = applied("nft", (Opening(ports=((8001, 8001),)),))
    done = subprocess.run(
        ("unshare", "--net", *command.argv), capture_output=True, text=True, check=False
    )
    assert (done.returncode, "No such file or directory" in done.stderr) == (1, True)
