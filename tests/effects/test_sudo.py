"""Through a real sudo: with a password, without one, and with rules that allow little."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sshd import Sshd, login_user, require_sshd, sshd
from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.effects.connect import connect
from vllmdeploy.effects.shell import Shell

USER, PASSWORD = f"vdsudo{os.getpid()}", "correct horse $HOME '"
RULES = Path(f"/etc/sudoers.d/vllmdeploy-test-{os.getpid()}")
WHOAMI = Command(("id", "-un")).elevated()


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    require_sshd()
    if shutil.which("sudo") is None:
        pytest.skip("sudo is not installed")
    # sshd reads authorized_keys as the user, who may not enter pytest's own folders.
    with tempfile.TemporaryDirectory(prefix="vllmdeploy-test-") as folder:
        Path(folder).chmod(0o755)
        with (
            login_user(USER, "/bin/sh", Path(folder) / "home", password=PASSWORD),
            sshd(Path(folder)) as running,
        ):
            yield running
    RULES.unlink(missing_ok=True)


@pytest.fixture
def shell(server: Sshd, tmp_path: Path) -> Iterator[Shell]:
    file = tmp_path / "password"
    file.write_text(PASSWORD, "utf-8")
    file.chmod(0o600)
    settings = server.settings(key=None, password_file=file)
    with connect([server.host(user=USER)], settings) as connected:
        yield connected.shells["a"]


@pytest.fixture
def shell_without_password(server: Sshd) -> Iterator[Shell]:
    with connect([server.host(user=USER)], server.settings()) as connected:
        yield connected.shells["a"]


def allow(rule: str) -> None:
    RULES.write_text(f"{USER} {rule}\n", "utf-8")
    RULES.chmod(0o440)


def test_the_password_opens_sudo_and_the_command_keeps_its_own_stdin(shell: Shell) -> None:
    allow("ALL=(ALL) ALL")
    assert shell.run(WHOAMI) == Result(0, "root\n")
    for _ in range(2):
        assert shell.run(Command(("cat",), stdin=b"a\nb").elevated()) == Result(0, "a\nb")
    assert shell.run(script("exit 9").elevated()).status == 9


def test_where_sudo_wants_no_password_none_reaches_the_command(shell: Shell) -> None:
    allow("ALL=(ALL) NOPASSWD: ALL")
    assert shell.run(Command(("cat",), stdin=b"mine").elevated()) == Result(0, "mine")
    assert shell.run(Command(("cat",)).elevated()) == Result(0)


def test_without_a_password_sudo_says_what_it_wants(shell_without_password: Shell) -> None:
    allow("ALL=(ALL) ALL")
    result = shell_without_password.run(WHOAMI)
    assert result.status == 1
    assert "password is required" in result.stderr


def test_rules_for_one_program_only_are_enough(shell_without_password: Shell) -> None:
    allow("ALL=(ALL) NOPASSWD: /usr/bin/id")
    assert shell_without_password.run(WHOAMI) == Result(0, "root\n")


def test_roots_command_is_ended_at_its_limit_too(shell_without_password: Shell) -> None:
    allow("ALL=(ALL) NOPASSWD: ALL")
    late = script("echo $$; sleep 4372").elevated().within(1.0)
    result = shell_without_password.run(late)
    assert result.timed_out
    pid = result.stdout.strip()
    assert shell_without_password.run(Command(("test", "-e", f"/proc/{pid}/exe"))).status == 1
