"""The command line cut down to one command says and does what the whole one does."""

from __future__ import annotations

import pytest
import typer
from typer.testing import CliRunner

from vllmdeploy.cli.app import app, main
from vllmdeploy.cli.fitted import fitted, meant

VALUES = {"--config": 1, "--nodes": 1, "--json": 0}
GROUPS = [str(info.name) for info in app.registered_groups]
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]  # a group


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["status", "--watch"], "status"),
        (["--json", "status"], "status"),
        (["--config", "status", "up"], "up"),
        (["--config=x", "--nodes", "y", "model", "list"], "model"),
        (["--help"], ""),
        ([], ""),
        (["--config"], ""),
        (["--nonsense", "up"], "up"),
    ],
)
def test_the_command_that_is_meant(words: list[str], command: str) -> None:
    assert meant(words, VALUES) == command


def said(program: typer.Typer, *argv: str) -> tuple[int, str]:
    done = CliRunner().invoke(program, argv)
    return done.exit_code, done.output


@pytest.mark.parametrize("argv", [["--help"], [], ["--version"], ["statsu"], ["modle", "list"]])
def test_who_asks_for_no_command_of_ours_sees_the_same(argv: list[str]) -> None:
    assert said(fitted(app, meant(argv, VALUES)), *argv) == said(app, *argv)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_whole_when_it_is_meant(command: str) -> None:
    whole = said(app, command, "--help")
    assert whole[0] == 0
    assert said(fitted(app, command), command, "--help") == whole


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_has_all_its_commands_when_it_is_meant(group: str) -> None:
    whole = typer.main.get_command(app).commands[group]  # type: ignore[attr-defined]  # a group
    for command in whole.commands:
        argv = (group, command, "--help")
        assert said(fitted(app, group), *argv) == said(app, *argv)


def test_completion_knows_every_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_VLLMDEPLOY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "vllmdeploy start-service --repl")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        main([])
    assert "--replicas" in capsys.readouterr().out
