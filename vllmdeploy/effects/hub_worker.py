"""The process that asks a hub: a job on stdin, a line of JSON on stdout for everything it did.

A process of its own, because the hubs' libraries read the environment when they are imported,
write where the environment tells them, and cannot be interrupted while they download.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from vllmdeploy.effects.hashing import hashes_of
from vllmdeploy.effects.hub_folder import Folder
from vllmdeploy.effects.hub_huggingface import HuggingFace
from vllmdeploy.effects.hub_modelscope import ModelScope
from vllmdeploy.tools.hub import (
    Done,
    Failed,
    HubTrouble,
    Job,
    Listing,
    RemoteFile,
    Report,
    Trouble,
    Waiting,
    Wanted,
    parse_job,
    report_line,
)

ATTEMPTS = 4
_LONGEST_WAIT_S = 120.0
_INTERRUPTED = 130

R = TypeVar("R")
Say = Callable[[Report], None]
Wait = Callable[[float], object]


class Client(Protocol):
    """One hub. `trouble` says what an exception of its library means, None for a bug."""

    def listing(self) -> Listing: ...

    def fetch(self, file: RemoteFile, commit: str, folder: Path) -> None: ...

    def trouble(self, error: Exception) -> HubTrouble | None: ...


def client_for(wanted: Wanted) -> Client:
    match wanted.source:
        case "huggingface":
            return HuggingFace(wanted)
        case "modelscope":
            return ModelScope(wanted)
        case "folder":
            return Folder(wanted)


def work(job: Job, client: Client, say: Say, wait: Wait) -> None:
    if not job.files:
        say(_asked(client, client.listing, say, wait, ""))
        return
    stopped = threading.Event()

    def one(file: RemoteFile) -> None:
        if stopped.is_set():
            return
        try:
            say(fetched(job, client, file, say, wait))
        except HubTrouble as trouble:
            if not trouble.trouble.passing:
                stopped.set()
            say(Failed(trouble.trouble, trouble.message, file.path))
        except BaseException:
            stopped.set()
            raise

    largest_first = sorted(job.files, key=lambda file: -file.size)
    with ThreadPoolExecutor(job.at_once) as pool:
        for future in [pool.submit(one, file) for file in largest_first]:
            future.result()


def fetched(job: Job, client: Client, file: RemoteFile, say: Say, wait: Wait) -> Done:
    """A file that is there and right stays; anything else is got anew and held to its hash."""
    folder = Path(job.folder)
    target = folder / file.path
    if file.checkable and target.is_file() and target.stat().st_size == file.size:
        found = hashes_of(target)
        if file.matches(found):
            return Done(file.path, found.sha256, found.size, fetched=False)

    def get() -> Done:
        target.unlink(missing_ok=True)
        client.fetch(file, job.commit, folder)
        found = hashes_of(target)
        if not file.matches(found):
            target.unlink()
            raise HubTrouble(
                Trouble.CHANGED,
                f"what came is not what was listed ({found.size} of {file.size} bytes)",
            )
        return Done(file.path, found.sha256, found.size, fetched=True)

    return _asked(client, get, say, wait, file.path)


def _asked(client: Client, ask: Callable[[], R], say: Say, wait: Wait, path: str) -> R:
    """Ask again after what may pass, as long as the hub says to wait, or longer each time."""
    attempt = 0
    while True:
        attempt += 1
        try:
            return ask()
        except Exception as error:
            trouble = error if isinstance(error, HubTrouble) else client.trouble(error)
            if trouble is None:
                raise
            if not trouble.trouble.passing or attempt >= ATTEMPTS:
                raise trouble from error
            say(Waiting(path, trouble.message))
            usual = 2.0 ** (attempt - 1)
            wait(min(_LONGEST_WAIT_S, usual if trouble.after_s is None else trouble.after_s))


def main() -> None:
    """Ends when the job is done, or at once when whoever started it is gone: stdin ends then."""
    job = parse_job(sys.stdin.buffer.readline())

    def watch() -> None:
        sys.stdin.buffer.read()
        os._exit(_INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()
    lock = threading.Lock()
    # Libraries print what they like; the lines of our own go to a stream that they do not know.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(report: Report) -> None:
        with lock:
            out.write(report_line(report) + "\n")
            out.flush()

    try:
        work(job, client_for(job.wanted), say, threading.Event().wait)
    except HubTrouble as trouble:
        say(Failed(trouble.trouble, trouble.message))
    out.close()
    # The libraries' threads may still hold connections; nobody waits for them.
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
