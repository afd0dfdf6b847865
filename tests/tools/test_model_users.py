"""Which stored services need which model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools.model_files_users import specs, users


def asked(folder: Path) -> Mapping[str, tuple[str, ...]]:
    return ask_one(LocalShell("here"), specs(str(folder)))


def test_specs_are_read_for_every_text_in_them(tmp_path: Path) -> None:
    chat = {"argv": ["vllm", "serve", "/models/m"], "env": {"A": "b"}, "port": 1}
    (tmp_path / "chat.json").write_text(json.dumps(chat, indent=1))
    (tmp_path / "two.json").write_text(json.dumps({"model": "/models/n/"}))
    (tmp_path / "broken.json").write_text('{"model": "@@spec x')
    (tmp_path / "other.txt").write_text("/models/m")
    found = asked(tmp_path)
    assert found == {
        "broken": (),
        "chat": ("vllm", "serve", "/models/m", "b"),
        "two": ("/models/n/",),
    }


def test_a_folder_without_specs_has_no_users(tmp_path: Path) -> None:
    assert asked(tmp_path / "not-there") == {}


@pytest.mark.parametrize(
    ("text", "uses"),
    [
        ("/models/m", True),
        ("/models/m/", True),
        ("/models/m/config.json", True),
        ("--model=/models/m", True),
        ("/models/m2", False),
        ("/models", False),
        ("m", False),
    ],
)
def test_a_service_uses_a_model_whose_folder_it_names(text: str, uses: bool) -> None:
    assert bool(users("/models/m", {"chat": (text,)})) is uses
