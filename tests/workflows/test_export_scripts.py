from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vllmdeploy.effects.template import render
from vllmdeploy.errors import UsageError
from vllmdeploy.workflows.export import SCRIPTS, export_scripts

VERBS = {
    ("head", "10.0.0.1"): "head 10.0.0.1",
    ("worker", "10.0.0.1", "10.0.0.2"): "worker 10.0.0.1 10.0.0.2",
    ("status",): "status",
    ("model-download", "meta-llama/Llama-3-8B-instruct", "huggingface"): (
        "model download meta-llama/Llama-3-8B-instruct huggingface"
    ),
    ("model-sync", "Llama-3-8B-instruct"): "model sync Llama-3-8B-instruct",
    ("model-list",): "model list",
    ("start-service", "Llama-3-8B-instruct", "8"): "start-service Llama-3-8B-instruct 8",
    ("stop-service", "a b"): "stop-service a b",
    ("logs", "-f"): "logs -f",
}


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The scripts in a folder with an awkward name, calling a tool that prints its words."""
    folder = tmp_path / "it's; $(touch pwned)"
    export_scripts(folder, config_folder=tmp_path, force=False)
    said = tmp_path / "tool"
    said.write_text('#!/bin/sh\necho "$*"\n')
    said.chmod(0o755)
    for name in SCRIPTS:
        text = (folder / name).read_text()
        lines = [
            f'tool() {{ {said} "$@"; }}' if line.startswith("tool() ") else line
            for line in text.splitlines()
        ]
        (folder / name).write_text("\n".join(lines) + "\n")
    return folder


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (str(script), *arguments), capture_output=True, text=True, check=False, timeout=20
    )


@pytest.mark.parametrize(("words", "said"), VERBS.items(), ids=lambda value: str(value)[:30])
def test_every_verb_of_the_seed_is_a_command(
    scripts: Path, words: tuple[str, ...], said: str
) -> None:
    done = run(scripts / "deploy_vllm.sh", *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{said}\n", "")


def test_the_short_scripts_hand_their_arguments_on(scripts: Path) -> None:
    assert run(scripts / "download_model.sh", "a/b", "modelscope").stdout == (
        "model download a/b modelscope\n"
    )
    assert run(scripts / "start_service.sh", "m", "0").stdout == "start-service m 0\n"
    assert run(scripts / "check_status.sh").stdout == "status\n"


def test_a_wrong_verb_says_so_and_how_to_go_on(scripts: Path) -> None:
    done = run(scripts / "deploy_vllm.sh", "heads")
    assert done.returncode == 2
    assert done.stderr.startswith("unknown verb: heads\nusage: ")


def test_no_folder_name_is_run_as_a_command(scripts: Path) -> None:
    run(scripts / "check_status.sh")
    assert not list(scripts.parent.rglob("pwned"))


def test_they_are_clean_for_shellcheck(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    paths = export_scripts(tmp_path, config_folder=tmp_path, force=False)
    done = subprocess.run(
        ("shellcheck", *map(str, paths)), capture_output=True, text=True, check=False
    )
    assert done.stdout == ""


def test_a_script_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    own = tmp_path / "deploy_vllm.sh"
    own.write_text("#!/bin/sh\necho mine\n")
    with pytest.raises(UsageError, match="not written by this command"):
        export_scripts(tmp_path, config_folder=tmp_path, force=False)
    assert own.read_text() == "#!/bin/sh\necho mine\n"
    export_scripts(tmp_path, config_folder=tmp_path, force=True)
    assert "vllmdeploy export scripts" in own.read_text()


def test_a_second_export_replaces_its_own(tmp_path: Path) -> None:
    first = export_scripts(tmp_path, config_folder=tmp_path, force=False)
    assert export_scripts(tmp_path, config_folder=tmp_path, force=False) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SCRIPTS)


def test_a_template_value_is_one_shell_word() -> None:
    text = render("scripts/check_status.sh.j2", {"folder": "a b; rm -rf $HOME"})
    assert "exec 'a b; rm -rf $HOME'/deploy_vllm.sh status" in text
