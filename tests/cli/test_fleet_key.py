"""Which key a command sends to the fleet's own gateway when it was given none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scripted_hosts import ScriptedFleet
from vllmdeploy.cli.context import World
from vllmdeploy.cli.fleet_key import fleet_key, sendable
from vllmdeploy.errors import HostUnreachable
from vllmdeploy.tools import files

KEY = "sk-0123456789abcdef"


@pytest.fixture
def fleet(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    monkeypatch.chdir(open_folder)
    writes()
    return ScriptedFleet(open_folder, "gpu-01")


def writes(*lines: str) -> None:
    Path("config.env").write_text("\n".join(("HEAD_HOST=gpu-01", *lines, "")), "utf-8")


def key(fleet: ScriptedFleet) -> str:
    here = World(connect=fleet.connect)
    return fleet_key(here, here.settings())


def test_it_is_the_heads_for_whoever_may_read_it_there(fleet: ScriptedFleet) -> None:
    assert key(fleet) == ""
    head = fleet["gpu-01"]
    folder = f"{head.state}/secrets/gateway"
    assert head.run(files.folders(folder)).ok
    text = f"alice:sha256:{'0' * 64}\ndefault:{KEY}\n"
    assert head.run(files.write(f"{folder}/api_keys", text.encode())).ok
    assert key(fleet) == KEY
    assert KEY not in "".join(head.commands)


def test_the_users_own_file_comes_first(fleet: ScriptedFleet) -> None:
    Path("keys").write_text(f"# ours\n{KEY}\n", "utf-8")
    writes("API_KEYS_FILE=keys")
    assert key(fleet) == KEY
    assert fleet["gpu-01"].commands == []


def test_an_open_gateway_gets_none(fleet: ScriptedFleet) -> None:
    writes("API_AUTH=none", "API_ALLOW=10.0.0.0/8")
    assert key(fleet) == ""
    assert fleet["gpu-01"].commands == []


def test_a_head_out_of_reach_is_told_of(
    fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet.failures["gpu-01"] = HostUnreachable("gpu-01", "no route")
    assert key(fleet) == ""
    assert capsys.readouterr().err.endswith("note: no API key from the head: gpu-01: no route\n")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ""),
        (f"bob:sha256:{'a' * 64}\n", ""),
        (f"eve:{KEY} per_minute=60\n", ""),
        (f"#x\n\n{KEY}\n", KEY),
        (f"default:{KEY}\n", KEY),
    ],
)
def test_a_key_with_limits_or_kept_as_a_hash_is_not_taken(text: str, found: str) -> None:
    assert sendable(text) == found
