"""Says which source each key takes its text from: flag, environment, file."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from vllmdeploy.config.envfile import Entry
from vllmdeploy.config.values import fault, suggestion, text_of

PREFIX = "VLLMDEPLOY_"
_TEST_PREFIX = "VLLMDEPLOY_TEST_"  # what steers the test suite and its rigs is no setting
BARE_KEYS = (
    *("WORKERS", "MAX_NUM_SEQS", "MAX_NUM_BATCHED_TOKENS", "GPU_MEMORY_UTILIZATION"),
    *("MAX_WORKERS", "TENSOR_PARALLEL_SIZE", "MAX_MODEL_LEN"),
    *("CUDA_MPS_ENABLE", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"),
    *("VLLM_USE_MPS", "VLLM_DISABLE_CUSTOM_ALL_REDUCE"),
    *("USE_MULTI_VLLM", "VLLM_PORTS", "VLLM_HOST", "INPUT_JSONL", "OUTPUT_DIR", "FONT_PATH"),
)


@dataclass(frozen=True, slots=True)
class Given:
    """A text for a key; `where` begins every message about it."""

    key: str
    text: str
    where: str
    in_file: bool = False
    bare: bool = False


@dataclass(frozen=True, slots=True)
class Gathered:
    given: Mapping[str, Given]
    problems: tuple[str, ...]


def gather(
    *,
    overrides: Mapping[str, object],
    environ: Mapping[str, str],
    entries: Collection[Entry],
    file_name: str,
    known: Collection[str],
    bare_names: bool,
) -> Gathered:
    """The first source that holds a key wins. An empty text counts as not given."""
    layers = (
        [_override(key, value) for key, value in overrides.items() if value is not None],
        _environment(environ),
        [
            Given(key, environ[key], f"environment: {key}", bare=True)
            for key in BARE_KEYS
            if bare_names and key in environ
        ],
        [
            Given(entry.key, entry.value, f"{file_name}:{entry.line}: {entry.key}", in_file=True)
            for entry in entries
        ],
    )
    winners: dict[str, Given] = {}
    problems: list[str] = []
    for given in (given for layer in layers for given in layer):
        problem = _problem(given, known)
        if problem:
            problems.append(f"{given.where}: {problem}")
        elif given.text:
            winners.setdefault(given.key, given)
    return Gathered(winners, tuple(problems))


def is_group_image(key: str) -> bool:
    return re.fullmatch(r"IMAGE_[A-Z0-9][A-Z0-9_]*", key) is not None


def _override(key: str, value: object) -> Given:
    name = key.upper()
    return Given(name, text_of(value), f"command line: {name}")


def _environment(environ: Mapping[str, str]) -> list[Given]:
    return [
        Given(name.removeprefix(PREFIX), text, f"environment: {name}")
        for name, text in sorted(environ.items())
        if name.startswith(PREFIX) and not name.startswith(_TEST_PREFIX)
    ]


def _problem(given: Given, known: Collection[str]) -> str | None:
    if given.key not in known and not is_group_image(given.key):
        near = suggestion(given.key.upper(), known)
        return f"unknown key{near or '; config.env.example lists all keys'}"
    return fault(given.text)
