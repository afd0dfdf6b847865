"""Writes config.env.example and docs/settings.md from the settings themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from vllmdeploy.config.envfile import quote
from vllmdeploy.config.keys.all import SECTIONS
from vllmdeploy.config.keys.types import Section
from vllmdeploy.config.nodes import MEANINGS
from vllmdeploy.config.sources import BARE_KEYS
from vllmdeploy.config.values import text_of

_WIDTH = 88
_RULES = (
    "KEY=VALUE, one a line: read, never run by a shell, so nothing in a value is expanded. "
    "Quote a value that holds ' #' or begins or ends with a blank. An empty value is the same "
    "as no line. A flag wins over VLLMDEPLOY_<KEY> in the environment, that over this file, "
    "this file over the default."
)


def config_env_example() -> str:
    """Every key commented out, with its default or, where it has none, an example."""
    return config_env({})


def config_env(chosen: Mapping[str, str]) -> str:
    """The same text with some keys set."""
    parts = [_comment("Settings of vllmdeploy. " + _RULES)]
    for section in SECTIONS:
        parts.append(f"\n# ---- {title(section)}\n")
        for name, field in section.model_fields.items():
            key = name.upper()
            parts.append(_comment(_described(field)))
            assignment = f"{key}={quote(chosen.get(key, _sample(field)))}"
            parts.append(f"{'' if key in chosen else '#'}{assignment}\n")
    return "".join(parts)


def settings_page() -> str:
    """The page of all settings, as Markdown."""
    parts = [
        "# Settings\n\n<!-- Written by `python -m vllmdeploy.config.example`. -->\n\n",
        _wrapped(_PAGE_INTRODUCTION) + "\n",
    ]
    for section in SECTIONS:
        parts.append(f"\n## {title(section)}\n\n| key | meaning | default | example |\n")
        parts.append("|---|---|---|---|\n")
        for name, field in section.model_fields.items():
            default = default_text(field)
            cells = (
                f"`{name.upper()}`",
                str(field.description),
                f"`{default}`" if default else "",
                f"`{_example(field)}`",
            )
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    parts.append(f"\n## worker_nodes.txt\n\n{_wrapped(_NODES_INTRODUCTION)}\n")
    parts.append("\n| option | meaning |\n|---|---|\n")
    parts += (f"| `{example}` | {meaning} |\n" for example, meaning in MEANINGS.items())
    return "".join(parts)


def title(section: type[Section]) -> str:
    return str(section.__doc__)


def default_text(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    return "" if value is None else text_of(value)


def write(folder: Path) -> None:
    (folder / "config.env.example").write_text(config_env_example(), encoding="utf-8")
    (folder / "docs").mkdir(exist_ok=True)
    (folder / "docs" / "settings.md").write_text(settings_page(), encoding="utf-8")


def _described(field: FieldInfo) -> str:
    default, example = default_text(field), _example(field)
    more = f" For example: {example}" if default and example != default else ""
    return f"{field.description}{more}"


def _sample(field: FieldInfo) -> str:
    return default_text(field) or _example(field)


def _example(field: FieldInfo) -> str:
    return str((field.examples or [""])[0])


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, 100, break_on_hyphens=False))


def _comment(text: str) -> str:
    return "".join(f"# {line}\n" for line in textwrap.wrap(text, _WIDTH, break_on_hyphens=False))


_PAGE_INTRODUCTION = (
    "`config.env` holds KEY=VALUE lines. They are parsed and never run by a shell: nothing is "
    "expanded, `#` begins a comment at the start of a line or behind a blank, quotes are "
    'optional (inside double quotes `\\"` and `\\\\` stand for `"` and `\\`). An empty value is '
    "the same as no line. An unknown key is an error, and all problems are reported at once. "
    "A flag wins over `VLLMDEPLOY_<KEY>` in the environment, that over the file, and the file "
    "over the default. The commands `instances`, `batch`, `mps`, `rerank` and the Python calls "
    "also read these bare names from the environment, below `VLLMDEPLOY_<KEY>` and above the "
    f"file: {', '.join(f'`{key}`' for key in BARE_KEYS)}. `IMAGE_<GROUP>` is the image of one "
    "group of worker_nodes.txt, in upper case with `_` for `-`: `IMAGE_HYGON_A` for "
    "`group=hygon-a`. Variables that begin with `VLLMDEPLOY_TEST_` belong to the test suite."
)

_NODES_INTRODUCTION = (
    "One host a line: `[user@]host[:port]`, then options. `#` begins a comment; an IPv6 address "
    "stands in brackets. A plain list of addresses is valid. Without `group=` a host is in the "
    "group `default`, whose head is HEAD_HOST; every other group has one line with `head=yes`. "
    "The head is not listed, except with `head=yes` to say something about it. Two lines for one "
    "host or address are an error, unless both name different ports."
)

if __name__ == "__main__":  # pragma: no cover - the tests call write()
    write(Path())
