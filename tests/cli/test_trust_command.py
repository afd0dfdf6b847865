"""`trust` against real sshds: what is shown, what is recorded, what is refused."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.support.sshd import Sshd, require_sshd, sshd
from vllmdeploy.cli.context import World
from vllmdeploy.cli.trust import trust
from vllmdeploy.effects.known_hosts import HostKey, entries
from vllmdeploy.errors import HostKeyChanged, HostUnreachable, UsageError

app = typer.Typer()
app.command()(trust)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Sshd, Sshd]]:
    require_sshd()
    folder = tmp_path_factory.mktemp("sshds")
    with sshd(folder / "one") as one, sshd(folder / "two") as two:
        yield one, two


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.env").write_text("SSH_KNOWN_HOSTS=ours/known_hosts\n", "utf-8")


def run(*flags: str, answer: str | None = None, as_json: bool = False) -> Result:
    return CliRunner().invoke(
        app, flags, obj=World(json=as_json), input=answer, catch_exceptions=True
    )


def nodes(*servers: Sshd) -> None:
    lines = [f"root@127.0.0.1:{server.port}\n" for server in servers]
    Path("worker_nodes.txt").write_text("".join(lines), "utf-8")


def key(server: Sshd) -> HostKey:
    return entries(f"x {server.host_key()}", Path())[0].key


def test_new_keys_are_shown_and_recorded_for_us_alone(servers: tuple[Sshd, Sshd]) -> None:
    nodes(*servers)
    result = run("--yes")
    assert result.exception is None, result.output
    for server in servers:
        assert f"{key(server).fingerprint} (ed25519)  new" in result.stdout
    file = Path("ours/known_hosts")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text("utf-8") == "".join(
        f"[127.0.0.1]:{server.port} {server.host_key()}\n" for server in servers
    )
    again = run()
    assert again.exception is None
    assert again.stdout.count("known") == 2
    assert "recorded" not in again.stderr


def test_nobody_to_ask_means_nothing_is_recorded(servers: tuple[Sshd, Sshd]) -> None:
    nodes(servers[0])
    result = run()
    assert isinstance(result.exception, UsageError)
    assert not Path("ours/known_hosts").exists()


def test_a_changed_key_is_refused_until_it_is_forgotten_on_purpose(
    servers: tuple[Sshd, Sshd],
) -> None:
    one, two = servers
    nodes(one)
    file = Path("ours/known_hosts")
    file.parent.mkdir()
    changed = f"# mine\n[127.0.0.1]:{one.port} {two.host_key()}\nother {two.host_key()}\n"
    file.write_text(changed, "utf-8")
    result = run("--yes")
    assert isinstance(result.exception, HostKeyChanged)
    assert result.exception.exit_code == 3
    assert key(one).fingerprint in str(result.exception)
    assert key(two).fingerprint in str(result.exception)
    assert "CHANGED" in result.stdout
    assert file.read_text("utf-8") == changed
    name = result.exception.host
    assert f"trust --forget {name}" in result.exception.hint
    assert run("--forget", name).exception is None
    assert file.read_text("utf-8") == f"# mine\nother {two.host_key()}\n"
    assert run("--yes").exception is None
    assert isinstance(run("--forget", "nobody").exception, UsageError)


def test_one_machine_listed_twice_is_pointed_out_and_json_is_one_document(tmp_path: Path) -> None:
    require_sshd()
    clone = tmp_path / "clone"
    clone.mkdir()
    with sshd(tmp_path / "first") as twin:
        for name in ("host_ed25519", "host_ed25519.pub"):
            (clone / name).write_bytes((twin.folder / name).read_bytes())
            (clone / name).chmod(0o600)
        with sshd(clone) as same:
            nodes(twin, same)
            result = run("--yes", as_json=True)
    assert result.exception is None
    assert f"same key as 127.0.0.1:{twin.port}: one machine listed twice" in result.stderr
    hosts = json.loads(result.stdout)["hosts"]
    assert [host["state"] for host in hosts] == ["new", "new"]
    assert {host["fingerprint"] for host in hosts} == {key(twin).fingerprint}


def test_hosts_that_answer_are_recorded_even_if_another_does_not(
    servers: tuple[Sshd, Sshd],
) -> None:
    one, _ = servers
    Path("worker_nodes.txt").write_text(
        f"root@127.0.0.1:{one.port}\nno-such-host.invalid\n", "utf-8"
    )
    result = run("--yes")
    assert isinstance(result.exception, HostUnreachable)
    assert Path("ours/known_hosts").read_text("utf-8").count("\n") == 1


def test_a_host_may_be_named_that_no_file_lists(servers: tuple[Sshd, Sshd]) -> None:
    one, two = servers
    nodes(one)
    result = run(f"root@127.0.0.1:{two.port}", "--yes")
    assert result.exception is None, result.output
    recorded = Path("ours/known_hosts").read_text("utf-8")
    assert recorded == f"[127.0.0.1]:{two.port} {two.host_key()}\n"


def test_a_name_that_is_no_host_is_refused() -> None:
    result = run("gpu 1", "--yes")
    assert isinstance(result.exception, UsageError)
    assert "is not a host name or IP address" in str(result.exception)
