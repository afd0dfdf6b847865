"""`init` writes the two files, from flags or from answers on a terminal."""

from __future__ import annotations

import json
import os
import pty
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest
import typer
from typer.testing import CliRunner

from vllmdeploy.cli.context import World
from vllmdeploy.cli.init import init
from vllmdeploy.config.settings import load
from vllmdeploy.errors import SettingsError, UsageError

app = typer.Typer()
app.command()(init)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*flags: str, config: str | None = None, nodes: str | None = None) -> str:
    world = World(config=Path(config) if config else None, nodes=Path(nodes) if nodes else None)
    result = CliRunner().invoke(app, flags, obj=world, catch_exceptions=False)
    assert result.exit_code == 0
    return result.stderr


def set_lines(path: str) -> list[str]:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_flags_alone_write_both_files() -> None:
    said = run(
        *("--head", "root@gpu-01", "--worker", "gpu-02", "--worker", "gpu-03 gpus=0,1"),
        *("--image", "vllm/vllm-openai:v0.11.0", "--model-path", "/data/models"),
        *("--ssh-user", "deploy", "--cluster-name", "blue", "--accelerator", "nvidia"),
    )
    assert said == (
        "wrote config.env and worker_nodes.txt\n"
        "next: vllmdeploy trust (records the hosts' SSH keys), then vllmdeploy plan\n"
    )
    assert set_lines("config.env") == [
        "MODEL_PATH=/data/models",
        "CLUSTER_NAME=blue",
        "HEAD_HOST=root@gpu-01",
        "SSH_USER=deploy",
        "IMAGE=vllm/vllm-openai:v0.11.0",
        "ACCELERATOR=nvidia",
    ]
    assert set_lines("worker_nodes.txt") == ["gpu-02", "gpu-03 gpus=0,1"]
    found = load(environ={})
    assert [host.name for host in found.fleet.hosts] == ["gpu-01", "gpu-02", "gpu-03"]


def test_nothing_given_and_no_terminal_writes_the_defaults() -> None:
    run()
    assert set_lines("config.env") == []
    assert load(environ={}, this_machine="desk").fleet.head.name == "desk"


def test_the_files_may_be_somewhere_else_and_find_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    run("--worker", "10.0.0.2", config="a/my.env", nodes="hosts.txt")
    found = load(config_path=Path("a/my.env"), environ={})
    assert [host.source for host in found.nodes] == [f"{tmp_path}/hosts.txt:10"]


def refused(*flags: str, config: str | None = None) -> UsageError:
    with pytest.raises(UsageError) as error:
        run(*flags, config=config)
    return error.value


def test_files_that_exist_are_not_replaced() -> None:
    Path("config.env").write_text("mine", encoding="utf-8")
    error = refused("--head", "gpu-01")
    assert error.exit_code == 2
    assert str(error) == (
        "config.env is already there: nothing written\n  -> edit by hand, or replace with --force"
    )
    assert Path("config.env").read_text(encoding="utf-8") == "mine"
    assert not Path("worker_nodes.txt").exists()


def test_force_replaces_them_and_leaves_nothing_else() -> None:
    Path("config.env").write_text("mine", encoding="utf-8")
    Path("worker_nodes.txt").symlink_to("elsewhere")
    assert str(refused()).startswith("config.env and worker_nodes.txt are already there")
    run("--force", "--head", "gpu-01")
    assert set_lines("config.env") == ["HEAD_HOST=gpu-01"]
    assert sorted(path.name for path in Path().iterdir()) == ["config.env", "worker_nodes.txt"]
    assert not Path("worker_nodes.txt").is_symlink()


def test_the_files_hold_no_secret_and_may_be_read_by_all() -> None:
    old = os.umask(0o022)
    try:
        run()
    finally:
        os.umask(old)
    assert stat.S_IMODE(Path("config.env").stat().st_mode) == 0o644


def test_flags_that_do_not_fit_are_all_named_and_nothing_is_written() -> None:
    error = refused("--cluster-name", "Blue", "--worker", "a b", "--worker", "-x", "--head", "h")
    assert isinstance(error, SettingsError)
    assert error.problems == (
        "command line: CLUSTER_NAME: 'Blue' is not a cluster name: up to 63 of a-z 0-9 _ . -, "
        "a letter or digit first",
        "command line: worker:1: 'b' is not key=value; write one host a line",
        "command line: worker:2: '-x' is not a host name or IP address",
    )
    assert list(Path().iterdir()) == []


def test_a_kind_of_cards_that_does_not_exist_is_refused() -> None:
    said = str(refused("--accelerator", "nvida", "--worker", "a accelerator=higon"))
    assert "command line: ACCELERATOR: 'nvida' is not one of nvidia, " in said
    assert "command line: worker:1: accelerator: 'higon' is not one of " in said
    assert said.endswith("; did you mean hygon?")


def test_with_json_the_answer_is_a_document() -> None:
    result = CliRunner().invoke(app, [], obj=World(json=True), catch_exceptions=False)
    assert json.loads(result.stdout) == {"written": ["config.env", "worker_nodes.txt"]}


def test_one_worker_is_one_line() -> None:
    assert str(refused("--worker", "a\nb")) == (
        "1 problem in the settings:\n"
        "  command line: worker:1: holds the control or invisible character U+000A"
    )


def test_a_folder_that_is_not_there_is_named() -> None:
    assert str(refused(config="none/config.env")) == (
        "none/config.env: cannot write it: No such file or directory"
    )


def on_a_terminal(answers: str, environment: Mapping[str, str]) -> str:
    """Runs `init` as its own process that asks on a real terminal; its standard output is none."""
    code = (
        "import typer; from vllmdeploy.cli.context import World; "
        "from vllmdeploy.cli.init import init; "
        "app = typer.Typer(); app.command()(init); app(obj=World())"
    )
    master, slave = pty.openpty()
    try:
        with Popen(
            [sys.executable, "-c", code],
            stdin=slave,
            stdout=DEVNULL,
            stderr=slave,
            env={**os.environ, **environment},
        ) as process:
            os.close(slave)
            os.write(master, answers.encode())
            output = _until_it_ends(master)
    finally:
        os.close(master)
    assert process.returncode == 0, output
    return output


def _until_it_ends(terminal: int) -> str:
    said = b""
    # Linux says EIO when nobody has the other end of a terminal any more.
    with suppress(OSError):
        while more := os.read(terminal, 4096):
            said += more
    return said.decode().replace("\r\n", "\n")


def test_on_a_terminal_it_asks_and_asks_again_what_does_not_fit() -> None:
    said = on_a_terminal(
        "Blue\nblue\ngpu-01\n\n\n\nvllm:1\ngpu-01\ngpu-02 gpus=0\n\n",
        {"TERM": "dumb"},
    )
    for line in (
        "Name of the cluster [vllm]:",
        "Error: CLUSTER_NAME: 'Blue' is not a cluster name",
        "Error: worker:1: gpu-01 is the head (HEAD_HOST)",
        "wrote config.env and worker_nodes.txt",
    ):
        assert line in said
    assert set_lines("config.env") == [
        "MODEL_PATH=/data/models",
        "CLUSTER_NAME=blue",
        "HEAD_HOST=gpu-01",
        "IMAGE=vllm:1",
        "ACCELERATOR=auto",
    ]
    assert set_lines("worker_nodes.txt") == ["gpu-02 gpus=0"]
