from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vllmdeploy.core.command import Command, Result
from vllmdeploy.tools import vllm
from vllmdeploy.tools.vllm import Vllm

ENGINE = Path(__file__).parents[2] / ".venv-engine/bin/python"
OURS = Vllm(
    version="0.11.0",
    serve=True,
    flags=frozenset(
        {
            "--max-model-len",
            "--enforce-eager",
            "-tp",
            "-O",
            "--compilation-config",
            "--rope-scaling",
        }
    ),
)


@pytest.mark.parametrize(
    "flag",
    [
        *("--max-model-len", "--max-model-len=4096", "--max_model_len=4096", "-tp", "-O3"),
        *("--no-enforce-eager", "--compilation-config.level", "--compilation_config.level=3"),
    ],
)
def test_a_flag_is_known_however_it_is_written(flag: str) -> None:
    assert OURS.knows(flag)


def test_values_and_negative_numbers_are_no_flags() -> None:
    values = ("--max-model-len", "-1", "--rope-scaling", '{"a": 1}', "-", "-.5", "plain")
    assert OURS.unknown(values) == ()


def test_an_unknown_flag_is_named_with_what_was_probably_meant() -> None:
    assert OURS.unknown(("--max-modle-len=1", "--frobnicate", "x")) == (
        "vLLM 0.11.0 has no --max-modle-len; did you mean --max-model-len?",
        "vLLM 0.11.0 has no --frobnicate",
    )


def asked(result: Result) -> Vllm:
    return vllm.installed(Command(("python3",))).parse(result)


def test_noise_around_the_answer_is_skipped() -> None:
    answer = {"version": "0.9.1", "serve": True, "flags": ["--x"], "methods": ["awq"]}
    assert asked(Result(0, f"warning: slow\n{json.dumps(answer)}\n")) == Vllm(
        version="0.9.1", serve=True, flags=frozenset({"--x"}), methods=("awq",)
    )


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (Result(0, '{"problem": "there is no vLLM"}'), "there is no vLLM"),
        (Result(1, "", "No such container: x"), "vLLM cannot be asked: No such container: x"),
        (Result(0, "{broken"), "vLLM cannot be asked: {broken"),
        (Result(0, '{"flags": 3}'), 'vLLM cannot be asked: {"flags": 3}'),
    ],
)
def test_what_cannot_be_read_is_a_problem_and_no_error(result: Result, problem: str) -> None:
    assert asked(result).problem == problem


OLD_FLAGS = """
parser.add_argument('--model', type=str)
parser.add_argument('--tensor-parallel-size', '-tp', type=int)
other.call('--not-one')
"""
NEW_FLAGS = """
@dataclass
class FrontendArgs:
    root_path: str | None = None
    allowed_origins: list[str] = field(default_factory=list)
    def method(self): ...
class Other:
    not_one: int = 1
"""


def installation(folder: Path, *, version: str) -> Path:
    """Something that looks like an installed vLLM to whoever does not import it."""
    files = {
        "vllm/__init__.py": "raise RuntimeError('never import this')",
        "vllm/engine/arg_utils.py": OLD_FLAGS,
        "vllm/entrypoints/openai/cli_args.py": NEW_FLAGS,
        "vllm/entrypoints/cli/serve.py": "",
        "vllm/model_executor/layers/quantization/__init__.py": (
            "QUANTIZATION_METHODS: list[str] = ['awq', 'gptq']\nOTHER = ['no']\n"
        ),
    }
    if version:
        files[f"vllm-{version}.dist-info/METADATA"] = f"Name: vllm\nVersion: {version}\n"
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.mark.parametrize("version", ["0.8.5", ""])
def test_an_installation_is_read_without_being_imported(tmp_path: Path, version: str) -> None:
    folder = installation(tmp_path, version=version)
    argv = (sys.executable, "-S", *vllm.probe_argv()[1:])
    environment = {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True)
    assert asked(Result(0, done.stdout)) == Vllm(
        version=version,
        serve=bool(version),
        flags=frozenset(
            {"--model", "--tensor-parallel-size", "-tp", "--root-path", "--allowed-origins"}
        ),
        methods=("awq", "gptq"),
    )


def test_where_there_is_none_it_says_so() -> None:
    argv = (sys.executable, "-I", "-S", *vllm.probe_argv()[1:])
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert asked(Result(0, done.stdout)) == Vllm(
        problem="there is no vLLM: set IMAGE to one that has it"
    )


@pytest.mark.skipif(not ENGINE.exists(), reason="scripts/engine.sh has not been run")
def test_a_real_vllm_shows_its_flags_and_methods() -> None:
    argv = (str(ENGINE), *vllm.probe_argv()[1:])
    found = asked(Result(0, subprocess.run(argv, capture_output=True, text=True).stdout))
    assert (found.version, found.serve, found.problem) == ("0.32.0+cpu", True, "")
    usual = ("--max-model-len", "--served-model-name", "--headless", "--shutdown-timeout", "--port")
    assert found.unknown((*usual, "--distributed-executor-backend", "-tp", "-pp")) == ()
    assert {"awq", "int8_per_channel_weight_only"} <= set(found.methods)


@pytest.mark.long
@pytest.mark.skipif(not ENGINE.exists(), reason="scripts/engine.sh has not been run")
def test_its_source_shows_every_flag_that_its_help_does() -> None:
    """The sources are read as trees; only the parser itself can say that nothing was missed."""
    asked_for_help = (*("-m", "vllm.entrypoints.cli.main", "serve"), "--help=all")
    shown = subprocess.run((str(ENGINE), *asked_for_help), capture_output=True, text=True).stdout
    listed = set(re.findall(r"^ +(?:-\w+, )?(--[a-z0-9-]+)", shown, re.MULTILINE))
    argv = (str(ENGINE), *vllm.probe_argv()[1:])
    found = asked(Result(0, subprocess.run(argv, capture_output=True, text=True).stdout))
    assert len(listed) > 250
    assert {flag for flag in listed if not found.knows(flag)} == {"--help", "--json-arg"}
