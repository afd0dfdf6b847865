"""Whose files a download makes on the head."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from tests.fakes import FakeShell, on
from vllmdeploy.core.layout import Layout
from vllmdeploy.tools import model_files
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.model_files_found import FoundStore
from vllmdeploy.workflows.models import SeenHost, SeenModels
from vllmdeploy.workflows.models_fetch import OnHead
from vllmdeploy.workflows.session import Session

# A user with sudo whose state folder is root's.
WAY = Access(Layout("/var/lib/vllmdeploy/vllm"), "ops", 1000, sudo_docker=True, sudo_files=True)


class OneShell:
    """As much of a session as is needed."""

    def __init__(self, shell: FakeShell) -> None:
        self.shells = {"a": shell}


@pytest.mark.parametrize(("here", "begins"), [(True, "a: sh -c"), (False, "a: sudo -n -- sh -c")])
def test_on_this_machine_they_are_of_the_user_who_downloads(
    tmp_path: Path, here: bool, begins: str
) -> None:
    shell = FakeShell(on("sh -c"))
    store = FoundStore(there=True)
    seen = SeenModels(root=str(tmp_path), head="a", hosts={"a": SeenHost(WAY, store)})
    head = OnHead(cast("Session", OneShell(shell)), seen, here=here)
    head.run(model_files.begin(ModelPlace(str(tmp_path), "m"), 1), "making room")
    assert shell.history[0].startswith(begins)
