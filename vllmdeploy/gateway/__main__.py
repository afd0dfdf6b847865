"""`python -m vllmdeploy.gateway`: the gateway on its own, as it runs inside a container."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from vllmdeploy.errors import VllmdeployError
from vllmdeploy.gateway.crew import Parent
from vllmdeploy.gateway.journal import say, to_stderr
from vllmdeploy.gateway.options import PROGRAM, spec
from vllmdeploy.gateway.run import Running, run
from vllmdeploy.gateway.spec import NO_WORKER, GatewaySpec
from vllmdeploy.gateway.worker import Worker
from vllmdeploy.wire import loop


def main(argv: Sequence[str] | None = None, *, prog: str = PROGRAM) -> int:
    try:
        wanted = spec(argv, prog=prog)
        to_stderr()
        say("open files", limit=loop.raise_open_files())
        loop.run(run(wanted, _kind(wanted)))
    except VllmdeployError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def _kind(wanted: GatewaySpec) -> Callable[[GatewaySpec], Running]:
    if wanted.worker != NO_WORKER:
        return Worker
    return Parent if wanted.workers > 1 else Running


if __name__ == "__main__":
    sys.exit(main())
