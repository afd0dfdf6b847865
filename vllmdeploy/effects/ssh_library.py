"""paramiko, with what it takes along for `Match exec` alone loaded when that is met: a task runner
with a test library, a twentieth of the time a `status` takes."""

from __future__ import annotations

import importlib
import sys
from typing import Any, cast

_RUNNER = "invoke"

_modules = cast("dict[str, Any]", sys.modules)
_hidden = _RUNNER not in _modules
if _hidden:
    _modules[_RUNNER] = None  # an import that fails, which paramiko is prepared for
try:
    import paramiko
    import paramiko.config
    import paramiko.ssh_exception
finally:
    if _hidden:
        del _modules[_RUNNER]

__all__ = ["IncompatiblePeer", "paramiko"]

IncompatiblePeer = paramiko.ssh_exception.IncompatiblePeer


class _Runner:
    @staticmethod
    def run(*arguments: Any, **options: Any) -> Any:
        return importlib.import_module(_RUNNER).run(*arguments, **options)


if _hidden:
    cast("Any", paramiko.config).invoke = _Runner
