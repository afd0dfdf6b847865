"""The Jinja2 sources of files that are put on hosts or exported: from the wheel or the checkout."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import jinja2

import vllmdeploy

_PACKAGE = Path(vllmdeploy.__file__).parent
_PLACES = (_PACKAGE / "_templates", _PACKAGE.parent / "templates")


def _quoted(value: object) -> str:
    return shlex.quote(str(value))


def raw(name: str) -> bytes:
    """A file that is used as it is."""
    found = (place / name for place in _PLACES if (place / name).is_file())
    return next(found).read_bytes()


def render(name: str, values: Mapping[str, object]) -> str:
    """Every value arrives as one shell word: none can end its quotes or start a command."""
    loader = jinja2.FileSystemLoader([str(place) for place in _PLACES])
    environment = jinja2.Environment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  shell, never HTML; values are quoted by `finalize`
        finalize=_quoted,
    )
    return environment.get_template(name).render(values)
