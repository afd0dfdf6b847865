"""Values with shell signs in them, from the settings to a program's own argv, really executed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllmdeploy.accelerators.registry import VENDORS
from vllmdeploy.config.settings import Loaded, load
from vllmdeploy.core.command import Command
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.errors import PreflightRefused, SettingsError
from vllmdeploy.workflows.offline import decide_offline

# Whatever a shell gives a meaning to; `touch ran` leaves a trace if one of them works.
PIECES = st.one_of(
    st.sampled_from(
        [
            *("$(touch ran)", "`touch ran`", "; touch ran;", "| touch ran", "&& touch ran", "\n"),
            *("'", '"', "\\", "$HOME", "${IFS}", "*", "?", "~", "!", "#", "<(touch ran)", ">ran"),
            *(
                "--privileged",
                "-v",
                "-",
                " ",
                "\t",
                "=",
                ",",
                ":",
                "/",
                "..",
                "%s",
                "{}",
                "\x1b[0m",
            ),
            *("{{.Id}}", "é", "日本", "a", "1", "x" * 300),
        ]
    ),
    st.text(max_size=5),
)
VALUES = st.lists(PIECES, min_size=1, max_size=4).map("".join)

KEYS = (
    *("IMAGE", "SHM_SIZE", "MODEL_PATH", "CLUSTER_NAME", "NETWORK_INTERFACE", "HEAD_HOST"),
    *("HEAD_IP", "ACCELERATOR", "RAY_PORT", "EXTRA_ENV", "EXTRA_DOCKER_ARGS", "SSH_USER"),
)
NODE_OPTIONS = ("ip", "interface", "group", "accelerator", "gpus", "ray_gpus")
RECORD = '#!/bin/sh\nfor word do printf "%s\\0" "$word"; done > "$RECORD"\n'


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="vllmdeploy-test-") as name:
        place = Path(name)
        (place / "bin").mkdir()
        docker = place / "bin" / "docker"
        docker.write_text(RECORD, "utf-8")
        docker.chmod(0o755)
        (place / "cwd").mkdir()
        yield place


def loaded(folder: Path, overrides: dict[str, str], nodes: str) -> Loaded | None:
    path = folder / "worker_nodes.txt"
    path.write_text(nodes, "utf-8", "surrogateescape")
    try:
        return load(nodes_path=path, environ={}, overrides=overrides, accelerators=tuple(VENDORS))
    except SettingsError:
        return None


def received(folder: Path, command: Command) -> tuple[str, ...]:
    """What Docker got when the command's shown text was given to a shell, and then its argv."""
    record, place = folder / "record", folder / "cwd"
    environment = {
        "PATH": f"{folder}/bin:{os.environ['PATH']}",
        "RECORD": str(record),
    }
    words = tuple(f"{key}={value}" for key, value in environment.items())
    shell = LocalShell("here")
    got: list[tuple[str, ...]] = []
    for argv in (("sh", "-c", str(command)), command.argv):
        result = shell.run(Command(("env", "-C", str(place), *words, *argv)))
        assert result.ok, result.output
        said = record.read_bytes().decode("utf-8", "surrogateescape")
        got.append(tuple(said.split("\0")[:-1]))
    assert got[0] == got[1]
    assert list(place.iterdir()) == [], "a value was executed"
    return ("docker", *got[0])


def hold(folder: Path, what: Loaded | None) -> Command | None:
    """Every container's command arrives as planned; one of them, where there is a plan."""
    if what is None:
        return None
    command = None
    try:
        decided = decide_offline(what, cards=2)
    except PreflightRefused:
        return None
    for step in decided:
        if step.command.argv[:2] == ("docker", "run"):
            command = step.command
            assert received(folder, command) == command.argv
    return command


@given(key=st.sampled_from(KEYS), value=VALUES)
@settings(max_examples=250, deadline=None, suppress_health_check=(HealthCheck.too_slow,))
def test_a_value_of_a_setting_arrives_literally_or_is_refused(
    folder: Path, key: str, value: str
) -> None:
    given_value = {"EXTRA_ENV": f"A='{value}'", "EXTRA_DOCKER_ARGS": f"--label {value}"}
    what = loaded(folder, {"HEAD_HOST": "gpu-01", key: given_value.get(key, value)}, "gpu-02\n")
    command = hold(folder, what)
    if command is not None and key == "IMAGE" and value.strip():
        assert value.strip() in command.argv
        assert not value.startswith("-")


@given(value=VALUES, option=st.sampled_from((*NODE_OPTIONS, "")))
@settings(max_examples=250, deadline=None, suppress_health_check=(HealthCheck.too_slow,))
def test_a_word_in_the_list_of_hosts_arrives_literally_or_is_refused(
    folder: Path, value: str, option: str
) -> None:
    line = f"gpu-02 {option}={value}" if option else value
    hold(folder, loaded(folder, {"HEAD_HOST": "gpu-01"}, f"{line}\n"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("IMAGE", "--privileged"),
        ("IMAGE", "a b"),
        ("IMAGE", "$(touch ran)"),
        ("CLUSTER_NAME", "a;b"),
        ("CLUSTER_NAME", "../x"),
        ("MODEL_PATH", "/data:/etc"),
        ("SHM_SIZE", "1g --privileged"),
        ("NETWORK_INTERFACE", "eth0;id"),
        ("HEAD_HOST", "-oProxyCommand=id"),
    ],
)
def test_what_could_only_be_meant_badly_is_refused(folder: Path, key: str, value: str) -> None:
    assert loaded(folder, {key: value}, "gpu-02\n") is None


def test_what_is_meant_literally_arrives(folder: Path) -> None:
    value = "a b'; $(touch ran) `id` \" \\ *"
    quoted = value.replace("\\", "\\\\").replace('"', '\\"')
    what = loaded(folder, {"HEAD_HOST": "gpu-01", "EXTRA_ENV": f'A="{quoted}"'}, "gpu-02\n")
    command = hold(folder, what)
    assert command is not None
    assert f"A={value}" in command.argv
