"""Ask a hub and download from it, through a process of its own that ends with us."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from vllmdeploy.errors import CommandFailed, UsageError, VllmdeployError
from vllmdeploy.tools.hub import (
    TOKEN_KEYS,
    USUAL_ENDPOINT,
    Done,
    Failed,
    Job,
    Listing,
    Report,
    Trouble,
    Waiting,
    Wanted,
    job_line,
    parse_report,
)

_WORKER = "vllmdeploy.effects.hub_worker"
_LOOK_EVERY_S = 0.5
_GOODBYE_S = 3.0
_KEPT_ERRORS = 64 * 1024
# What would send a library elsewhere than we said, or give it a token that nobody named.
_OURS_TO_SAY = ("HF_", "HUGGING", "TRANSFORMERS_", "MODELSCOPE_")
_STAY = "run it again: files that are finished stay"
_NEXT = {
    Trouble.CHANGED: f"did the source change meanwhile? {_STAY}",
    Trouble.LIMITED: f"it limits how much is asked: wait, then {_STAY}",
    Trouble.UNREACHABLE: (
        f"is it reachable from here? HF_ENDPOINT in config.env names a mirror; {_STAY}"
    ),
    Trouble.LOCAL: f"mend that, then {_STAY}",
    Trouble.OTHER: _STAY,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a download is; `waiting` says why a file has to be asked for again."""

    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    bytes_per_s: float = 0.0
    waiting: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Nothing while so little has come that its pace tells nothing."""
        left = self.bytes_total - self.bytes_done
        known = self.bytes_per_s > 0 and 1000 * self.bytes_done >= self.bytes_total
        return left / self.bytes_per_s if known else None


OnProgress = Callable[[Progress], None]


def listing(wanted: Wanted, *, environ: Mapping[str, str], scratch: Path) -> Listing:
    """The repository at its commit; `scratch` is where the library may keep files of its own."""
    with _worker(Job(wanted=wanted), environ, scratch) as worker:
        for report in worker.reports():
            match report:
                case Listing():
                    return report
                case Failed():
                    raise worded(wanted, report)
                case _:
                    pass
    raise worker.died()


def fetch(job: Job, *, environ: Mapping[str, str], on_progress: OnProgress) -> tuple[Done, ...]:
    """Every file of the job, verified, in the job's folder; those that are there stay there."""
    folder = Path(job.folder)
    done: dict[str, Done] = {}
    failed: list[Failed] = []
    meter = _Meter(job)
    with _worker(job, environ, folder / ".cache") as worker:
        for report in worker.reports():
            match report:
                case Done():
                    done[report.path] = report
                case Failed():
                    failed.append(report)
                case Waiting():
                    meter.waiting = f"{report.path}: {report.message}"
                case _:
                    pass
            on_progress(meter.progress(len(done)))
    if failed:
        raise _joined(job.wanted, failed)
    if len(done) < len(job.files):
        raise worker.died()
    return tuple(done[file.path] for file in job.files)


def worded(wanted: Wanted, failed: Failed) -> VllmdeployError:
    """What a person reads, by the kind of trouble."""
    where = urlsplit(wanted.endpoint or USUAL_ENDPOINT[wanted.source]).netloc or "this machine"
    repo, key = wanted.repo, TOKEN_KEYS.get(wanted.source, "")
    match failed.trouble:
        case Trouble.MISSING:
            message = f"{where} has no model {repo}, or it is private"
            return UsageError(message, hint=f"check the name; a private one needs {key}")
        case Trouble.DATASET:
            return UsageError(f"{repo} on {where} is a dataset, not a model")
        case Trouble.REVISION:
            return UsageError(f"{repo} on {where} has no revision {wanted.revision!r}")
        case Trouble.GATED:
            return _gated(wanted, where, key)
        case Trouble.LIBRARY:
            return UsageError(
                f"the library of {wanted.source} is not installed: {failed.message}",
                hint=f"pip install 'vllmdeploy[{wanted.source}]', or take another source",
            )
        case Trouble.LOCAL:
            where = "this machine"
        case _:
            pass
    what = f"download {failed.path or repo}" + (f" of {repo}" if failed.path else "")
    return CommandFailed(where, what, 1, failed.message, hint=_NEXT[failed.trouble])


def _gated(wanted: Wanted, where: str, key: str) -> UsageError:
    if wanted.token:
        message = f"{wanted.repo} on {where} is gated, and the token of {key} may not read it"
        return UsageError(message, hint="accept its terms there with the token's account")
    return UsageError(
        f"{wanted.repo} on {where} is gated, and no token was given",
        hint=f"accept its terms there, then set {key} to a file with a token",
    )


def _joined(wanted: Wanted, failed: list[Failed]) -> VllmdeployError:
    error = worded(wanted, failed[0])
    if len(failed) > 1:
        others = f"\n  and {len(failed) - 1} more files failed"
        error.message += others
    return error


class _Meter:
    """Looks at the disk: no library's own count has to be trusted."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = Path(job.folder)
        self._total = sum(max(0, file.size) for file in job.files)
        self._began = time.monotonic()
        self._there_before = self._bytes()
        self._shown = Progress(
            bytes_done=self._there_before,
            bytes_total=self._total,
            files_done=0,
            files_total=len(job.files),
        )
        self._next = 0.0
        self.waiting = ""

    def progress(self, files_done: int) -> Progress:
        now = time.monotonic()
        if now >= self._next or files_done == self._shown.files_total:
            self._next = now + _LOOK_EVERY_S
            done = self._bytes()
            rate = max(0, done - self._there_before) / max(0.001, now - self._began)
            self._shown = replace(self._shown, bytes_done=done, bytes_per_s=rate)
        self._shown = replace(self._shown, files_done=files_done, waiting=self.waiting)
        return self._shown

    def _bytes(self) -> int:
        found = 0
        for parent, _, names in os.walk(self._folder):
            for name in names:
                with suppress(OSError):  # renamed meanwhile
                    found += (Path(parent) / name).lstat().st_size
        return min(found, self._total)


class _Worker:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._errors = bytearray()

    def reports(self) -> Generator[Report | None]:
        """What the process says; None now and then while it says nothing."""
        unfinished = b""
        stdout, stderr = self._process.stdout, self._process.stderr
        if stdout is None or stderr is None:
            raise ValueError("started without pipes")
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            selector.register(stderr, selectors.EVENT_READ)
            while selector.get_map():
                for key, _ in selector.select(_LOOK_EVERY_S):
                    data = os.read(key.fd, 2**16)
                    if not data:
                        selector.unregister(key.fileobj)
                    elif key.fileobj is stderr:
                        self._errors = (self._errors + data)[-_KEPT_ERRORS:]
                    else:
                        *lines, unfinished = (unfinished + data).split(b"\n")
                        yield from filter(
                            None, (parse_report(line.decode("utf-8", "replace")) for line in lines)
                        )
                yield None

    def died(self) -> CommandFailed:
        status = self._process.wait(_GOODBYE_S)
        said = self._errors.decode("utf-8", "replace")
        return CommandFailed("this machine", f"python -m {_WORKER}", status, said)


@contextmanager
def _worker(job: Job, environ: Mapping[str, str], scratch: Path) -> Generator[_Worker]:
    """In a session of its own, so that Ctrl-C reaches us only; it ends when its stdin does."""
    process = subprocess.Popen(
        (sys.executable, "-m", _WORKER),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(environ, scratch),
        cwd="/",
        start_new_session=True,
    )
    try:
        if process.stdin is None:
            raise ValueError("started without a pipe")
        with suppress(BrokenPipeError):  # it died already, and `died` tells why
            process.stdin.write(job_line(job))
            process.stdin.flush()
        yield _Worker(process)
    finally:
        with suppress(BrokenPipeError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def _environment(environ: Mapping[str, str], scratch: Path) -> dict[str, str]:
    kept = {name: value for name, value in environ.items() if not name.startswith(_OURS_TO_SAY)}
    package = str(Path(__file__).resolve().parents[2])
    known = environ.get("PYTHONPATH")
    return {
        **kept,
        "PYTHONPATH": f"{package}{os.pathsep}{known}" if known else package,
        "PYTHONSAFEPATH": "1",
        "HF_HOME": str(scratch / "home"),
        "HF_HUB_DISABLE_XET": "1",  # mirrors do not serve it
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
        "MODELSCOPE_CACHE": str(scratch / "home"),
        "MODELSCOPE_HOME": str(scratch / "home"),
    }
