"""Reads EXTRA_ENV: variables for containers, apart by blanks or commas, quoted as in a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping

from vllmdeploy.config.values import shown

_SECRETS = {
    "HF_TOKEN": "HF_TOKEN_FILE",
    "HUGGING_FACE_HUB_TOKEN": "HF_TOKEN_FILE",
    "VLLM_API_KEY": "API_KEYS_FILE",
    "RAY_AUTH_TOKEN": "RAY_AUTH=token",
}


def variables(text: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for item in _words(text):
        name, equals, value = item.partition("=")
        # The value may be a secret, so a message shows the name only.
        if not equals or re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) is None:
            what = f"{shown(name)} is not NAME=VALUE"
            raise ValueError(f"{what}; a value with a comma or blank needs quotes")
        if name in _SECRETS:
            raise ValueError(f"{name} would show in `ps`: use {_SECRETS[name]}")
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = value
    return found


def _words(text: str) -> list[str]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace = " \t,"
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        return list(lexer)
    except ValueError as error:
        raise ValueError("a quote or backslash in it has no partner") from error
