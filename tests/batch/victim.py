"""A batch run in a process of its own that kills itself with SIGKILL at one exact write.

    python -m tests.batch.victim IN OUT URL ROWS BYTES KEY

After ROWS whole entries it writes BYTES of the next one and dies; ROWS of -1 lets it live.
"""

from __future__ import annotations

import os
import signal
import sys

from vllmdeploy.batch import journal
from vllmdeploy.batch.durable import write_all
from vllmdeploy.batch.pipeline import run_pipeline


def die_at(rows: int, torn: int) -> None:
    written = 0

    def write(descriptor: int, data: bytes) -> None:
        nonlocal written
        if written == rows:
            os.write(descriptor, data[: min(torn, len(data) - 1)])
            os.kill(os.getpid(), signal.SIGKILL)
        written += 1
        write_all(descriptor, data)

    vars(journal)["write_all"] = write


def main() -> None:
    source, output, url, rows, torn, key = sys.argv[1:]
    if int(rows) >= 0:
        die_at(int(rows), int(torn))
    run_pipeline(source, output, url, model="tiny", api_key=key)


if __name__ == "__main__":
    main()
