"""The shell behind SSH, against a real sshd."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.contract import ShellContract
from tests.support.sshd import Sshd, require_sshd, sshd
from vllmdeploy.effects.connect import connect
from vllmdeploy.effects.shell import Shell


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    require_sshd()
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def connected_shell(server: Sshd) -> Iterator[Shell]:
    with connect([server.host()], server.settings()) as connected:
        assert connected.failures == {}
        yield connected.shells["a"]


class TestSshShell(ShellContract):
    @pytest.fixture
    def shell(self, connected_shell: Shell) -> Shell:
        return connected_shell

    def test_it_carries_the_name_the_user_gave(self, shell: Shell) -> None:
        assert shell.host == "a"
