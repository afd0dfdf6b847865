"""What images answer when they are asked what is inside, and how often they are asked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.support.docker import fake_docker
from vllmdeploy.core.command import Result
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools import image_probe
from vllmdeploy.tools.image_probe import ImageContents

CONTENTS = '{"python": "3.12.3", "ray": "2.60.0", "vllm": "0.17.0", "uid": 0, "gid": 0}'


@pytest.mark.parametrize(
    ("result", "contents"),
    [
        (Result(0, CONTENTS), ImageContents(python="3.12.3", ray="2.60.0", vllm="0.17.0")),
        (
            Result(0, f"banner\n{{a site hook}}\n{CONTENTS}\n"),
            ImageContents(python="3.12.3", ray="2.60.0", vllm="0.17.0"),
        ),
        (
            Result(127, "", 'exec: "python3": executable file not found in $PATH: unknown.'),
            ImageContents(problem="it has no python3: not a vLLM image"),
        ),
        (Result(1, "", "killed"), ImageContents(problem="it does not answer: killed")),
        (
            Result(0, '{"python": 1}\n'),
            ImageContents(problem='its answer is not readable: {"python": 1}'),
        ),
    ],
)
def test_what_an_image_holds_is_read(result: Result, contents: ImageContents) -> None:
    assert image_probe.probe("sha256:1", (), "/k").parse(result) == contents


def test_the_interpreter_of_this_machine_answers() -> None:
    fact = image_probe.interpreter("python3")
    found = fact.parse(LocalShell("here").run(fact.command))
    assert (found.problem, found.uid) == ("", os.getuid())
    assert found.python.startswith("3.")


def probed(folder: Path, monkeypatch: pytest.MonkeyPatch, kept: str, said: str) -> tuple[str, str]:
    """What it answered and what Docker was asked."""
    (folder / "said").write_text(said, "utf-8")
    text = f'printf "%s\\n" "$*" >> {folder}/asked; cat {folder}/said'
    shell = fake_docker(folder, text, monkeypatch)
    fact = image_probe.probe("sha256:1", ("--gpus", "all"), kept)
    result = shell.run(fact.command)
    assert result.ok, result.output
    return result.stdout, (folder / "asked").read_text("utf-8").splitlines()[0]


def test_an_image_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "cache" / "probes" / "x"
    for _ in range(2):
        answer, asked = probed(tmp_path, monkeypatch, str(kept), CONTENTS)
        assert answer == CONTENTS + "\n"
        assert asked.startswith("run --rm --network none --gpus all --entrypoint python3 sha256:1")
    assert (tmp_path / "asked").read_text("utf-8").count("run --rm") == 1
    assert list(kept.parent.iterdir()) == [kept]


def test_an_answer_that_cannot_be_kept_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    answer, asked = probed(tmp_path, monkeypatch, f"{tmp_path}/file/x", CONTENTS)
    assert answer == CONTENTS + "\n"
    assert "--gpus all" in asked


def test_an_answer_that_is_none_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed(tmp_path, monkeypatch, f"{tmp_path}/kept", "nonsense")
    assert not (tmp_path / "kept").exists()


def test_a_container_that_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = fake_docker(tmp_path, "echo no >&2; exit 125", monkeypatch)
    fact = image_probe.probe("i", (), f"{tmp_path}/kept")
    assert shell.run(fact.command) == Result(125, "", "no\n")


WHOLE = {
    "python": "3.12.3",
    "ray": "2.60.0",
    "vllm": "0.33.0",
    "torch": "2.14.0",
    "nccl": "2.28.1",
    "cuda": "13.0",
    "rocm": None,
    "dtk": "",
    "requires": "cuda>=13.0",
    "uvloop": True,
    "httptools": False,
    "uid": 0,
    "gid": 0,
}
ENGINE = {"version": "0.33.0", "serve": True, "flags": ["--model"], "methods": ["fp8"]}


def test_everything_that_counts_is_read() -> None:
    said = f"{json.dumps(WHOLE)}\n{json.dumps(ENGINE)}\n"
    found = image_probe.probe("i", (), "/k").parse(Result(0, said))
    assert (found.torch, found.nccl, found.cuda, found.rocm) == ("2.14.0", "2.28.1", "13.0", "")
    assert (found.uvloop, found.httptools, found.requires) == (True, False, "cuda>=13.0")
    assert found.engine is not None
    assert (found.engine.version, set(found.engine.flags)) == ("0.33.0", {"--model"})


def laid(folder: Path, path: str, text: str = "") -> None:
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_text(text, "utf-8")


def test_nothing_is_imported_to_learn_what_torch_was_built_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid(tmp_path, "torch/__init__.py", "raise SystemExit('imported')")
    laid(tmp_path, "torch/version.py", "cuda: Optional[str] = '12.9'\nhip: Optional[str] = None\n")
    laid(tmp_path, "torch-2.9.0.dist-info/METADATA", "Name: torch\nVersion: 2.9.0\n")
    laid(tmp_path, "nvidia_nccl_cu12-2.27.5.dist-info/METADATA", "Version: 2.27.5\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("NVIDIA_REQUIRE_CUDA", "cuda>=12.9")
    fact = image_probe.interpreter(sys.executable)
    found = fact.parse(LocalShell("here").run(fact.command))
    assert (found.torch, found.cuda, found.rocm, found.nccl) == ("2.9.0", "12.9", "", "2.27.5")
    assert (found.requires, found.problem) == ("cuda>=12.9", "")
    monkeypatch.setenv("NVIDIA_DISABLE_REQUIRE", "1")
    assert fact.parse(LocalShell("here").run(fact.command)).requires == ""


REQUIRES = "cuda>=12.9 brand=unknown,driver>=535,driver<536 brand=tesla,driver>=550,driver<551"


@pytest.mark.parametrize(
    ("cuda", "requires", "newest", "driver", "asked"),
    [
        ("13.0", "", "12.4", "550.54.15", "13.0"),
        ("12.9", "", "12.4", "550.54.15", ""),
        ("12.9", REQUIRES, "12.4", "550.54.15", ""),
        ("12.9", REQUIRES, "12.2", "535.183.06", ""),
        ("12.9", REQUIRES, "12.0", "525.60.13", "12.9"),
        ("12.9", REQUIRES, "13.0", "580.65.06", ""),
        ("12.9", "cuda>=12.9", "12.4", "550.54.15", "12.9"),
        ("13.0", "cuda>=13.0", "", "", ""),
        ("", "", "12.4", "550.54.15", ""),
        ("nonsense", "brand=tesla", "12.4", "550", ""),
    ],
)
def test_the_driver_limits_which_cuda_runs(
    cuda: str, requires: str, newest: str, driver: str, asked: str
) -> None:
    contents = ImageContents(cuda=cuda, requires=requires)
    assert image_probe.too_new_for(contents, newest=newest, driver=driver) == asked


def test_a_newer_question_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    name = image_probe.kept_name("abc", ("-v", "/x:/x"))
    assert name.startswith("abc-")
    assert name != image_probe.kept_name("abc", ())
