"""The shell of this machine."""

from __future__ import annotations

import pytest

from tests.support.contract import ShellContract
from vllmdeploy.effects.local import LocalShell


class TestLocalShell(ShellContract):
    @pytest.fixture
    def shell(self) -> LocalShell:
        return LocalShell("here")

    def test_it_carries_the_name_the_user_gave(self, shell: LocalShell) -> None:
        assert shell.host == "here"
