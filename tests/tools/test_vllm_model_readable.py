"""Whether the engine's own user can read a model: asked where it runs, by opening every file."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Generator
from pathlib import Path

import pytest

from vllmdeploy.core.command import Command, Result
from vllmdeploy.tools.vllm_model import FoundModel, readable_argv, unreadable

NOBODY = 65534


@pytest.fixture
def model() -> Generator[Path]:
    """In a place that everybody can reach, which pytest's own folder is not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "sub").mkdir()
        (folder / "a b").write_text("x")
        (folder / "sub/c").write_text("x")
        yield folder
        for path in (folder, folder / "sub"):
            path.chmod(0o755)


def said(folder: Path) -> str:
    nobody = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    done = subprocess.run(readable_argv(str(folder)), capture_output=True, text=True, **nobody)  # type: ignore[call-overload]  # only what root may give
    return unreadable(Command(("true",))).parse(Result(done.returncode, done.stdout, done.stderr))


def test_a_model_that_can_be_read_says_nothing(model: Path) -> None:
    meta = model / ".vllmdeploy"
    meta.mkdir()
    meta.chmod(0)
    assert said(model) == ""
    meta.chmod(0o700)


@pytest.mark.parametrize(("closed", "named"), [("sub/c", "./sub/c"), ("sub", "./sub"), (".", "")])
def test_what_cannot_be_read_is_named_with_the_user(model: Path, closed: str, named: str) -> None:
    (model / closed).chmod(0)
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert said(model) == f"{named or model}, by user {user}"


def test_where_nobody_answers_nothing_is_known() -> None:
    assert unreadable(Command(("true",))).parse(Result(1, "", "No such container: n")) == ""


def test_an_engine_that_cannot_read_its_model_is_no_engine() -> None:
    model = FoundModel(there=True, config="{}", unreadable="./a, by user 2000")
    assert model.problem == "not readable where the engine runs: ./a, by user 2000"
