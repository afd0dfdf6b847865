"""`python -m vllmdeploy.gateway`: the gateway on its own, as it runs inside a container."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vllmdeploy.errors import VllmdeployError
from vllmdeploy.gateway.journal import say, to_stderr
from vllmdeploy.gateway.options import PROGRAM, spec
from vllmdeploy.gateway.run import run
from vllmdeploy.wire import loop


def main(argv: Sequence[str] | None = None, *, prog: str = PROGRAM) -> int:
    try:
        wanted = spec(argv, prog=prog)
        to_stderr()
        say("open files", limit=loop.raise_open_files())
        loop.run(run(wanted))
    except VllmdeployError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
