"""The official openai SDK, for the tests that hold our API against it."""

from __future__ import annotations

import importlib
from typing import Any

# Untyped on purpose: the type checker would read a thousand modules for these few calls.
openai: Any = importlib.import_module("openai")
