"""The command line itself: options anywhere, help, errors, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

import pytest
import typer
from typer.testing import CliRunner

from vllmdeploy import __version__
from vllmdeploy.cli.app import app, hoisted, main
from vllmdeploy.errors import UsageError


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("up --json", "--json up"),
        ("--json up", "--json up"),
        ("up --config a --yes --nodes=b", "--config a --nodes=b up --yes"),
        ("up --json=1", "up --json=1"),
        ("logs -- --json --config", "logs -- --json --config"),
        ("up --configs", "up --configs"),
        ("gateway run --config x", "gateway run --config x"),
        ("--config --json up", "--config --json up"),
        ("", ""),
    ],
)
def test_our_own_options_may_stand_anywhere(given: str, seen: str) -> None:
    assert hoisted(given.split()) == seen.split()


def test_an_option_that_lacks_its_value_does_not_swallow_the_command() -> None:
    with pytest.raises(UsageError, match="--config needs a value"):
        hoisted(["up", "--config"])


def ended(*argv: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(argv))
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("--version",), 0),
        (("--help",), 0),
        (("no-such-command",), 2),
        (("up", "--no-such-option"), 2),
        (("up", "--config"), 2),
        (("up", "--cards", "x"), 2),
        (("plan", "--config", "/no/such/file"), 2),
    ],
)
def test_exit_codes_of_the_line_itself(
    argv: tuple[str, ...], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(*argv) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.out or said.err


def test_the_version_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"vllmdeploy {__version__}\n"


class Group(Protocol):
    """Typer's own kind of group, whichever click is behind it."""

    commands: dict[str, object]


def commands(group: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(cast("Group", command), (*path, name))
        else:
            yield (*path, name)


def every_command() -> list[tuple[str, ...]]:
    return sorted(commands(cast("Group", typer.main.get_command(app))))


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_the_help_of_every_command_has_an_example(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == 0
    # `gateway run` has the help of the program that runs in containers.
    name = rf"(vllmdeploy {' '.join(path)}|python -m vllmdeploy\.gateway)\b"
    example = rf"(Example: (.*\| )?|example:\n  ){name}"
    assert re.search(example, result.output), result.output


def test_ctrl_c_in_a_real_process_ends_with_130(tmp_path: Path) -> None:
    docker = tmp_path / "docker"
    docker.write_text("#!/bin/sh\necho begun\nexec sleep 60\n", "utf-8")
    docker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vllmdeploy", "logs", "--follow"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().endswith(" | begun\n")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (
        130,
        "interrupted; the next run goes on from here",
    )
    assert "Traceback" not in said
