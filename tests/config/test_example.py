"""The generated example and page say what the settings are, and stay so."""

from __future__ import annotations

import re
from pathlib import Path

from vllmdeploy.config import envfile
from vllmdeploy.config.example import (
    config_env,
    config_env_example,
    default_text,
    settings_page,
    write,
)
from vllmdeploy.config.settings import KEYS, Settings, load, starting

ROOT = Path(__file__).parents[2]
AGAIN = "run `python -m vllmdeploy.config.example`"


def test_the_files_in_the_repository_are_the_generated_ones(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("config.env.example", "docs/settings.md"):
        fresh = (tmp_path / name).read_text(encoding="utf-8")
        assert (ROOT / name).read_text(encoding="utf-8") == fresh, AGAIN


def test_the_example_as_it_is_sets_nothing() -> None:
    assert envfile.parse(config_env_example(), name="f") == envfile.EnvFile()


def test_the_example_with_every_key_switched_on_is_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.env"
    path.write_text(re.sub(r"(?m)^#(?=[A-Z])", "", config_env_example()), encoding="utf-8")
    (tmp_path / "worker_nodes.txt").write_text("gpu-02\n", encoding="utf-8")
    found = load(config_path=path, environ={}, this_machine="desk")
    assert set(found.sources) == set(KEYS)
    set_and_default = {
        name for name, field in Settings.model_fields.items() if default_text(field)
    } - {"worker_nodes_file"}
    for name in set_and_default:
        assert getattr(found.settings, name) == getattr(Settings(), name)


def test_every_example_of_every_key_is_valid() -> None:
    examples = {
        name.upper(): str((field.examples or [""])[0])
        for name, field in Settings.model_fields.items()
        if name != "images"
    }
    found = starting(examples, nodes_text="", nodes_name="n", this_machine="desk")
    assert set(found.sources) == set(KEYS)


def test_a_chosen_key_stands_where_its_example_stood() -> None:
    text = config_env({"CLUSTER_NAME": "blue", "EXTRA_VLLM_ARGS": "--x 'a \"b\"'"})
    changed = set(text.splitlines()) - set(config_env_example().splitlines())
    assert changed == {
        "CLUSTER_NAME=blue",
        'EXTRA_VLLM_ARGS="--x \'a \\"b\\"\'"',
    }
    assert [(entry.key, entry.value) for entry in envfile.parse(text, name="f").entries] == [
        ("CLUSTER_NAME", "blue"),
        ("EXTRA_VLLM_ARGS", "--x 'a \"b\"'"),
    ]


def test_every_key_has_a_meaning_and_an_example() -> None:
    page = settings_page()
    for name, field in Settings.model_fields.items():
        if name == "images":
            continue
        assert field.description
        assert field.description.endswith(".")
        assert field.examples
        assert f"| `{name.upper()}` | {field.description}" in page.replace("\\|", "|")
