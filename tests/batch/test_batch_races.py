"""What must not hang a run or harm its output: lost cancellations, failing syncs, late signals."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from tests.batch.test_batch_run import prompts, spec_of
from tests.batch.upstream import Asked, Say, echo, serving
from vllmdeploy.batch import journal, loops, runner
from vllmdeploy.batch.calls import HttpCalls
from vllmdeploy.batch.durable import OutputStopped
from vllmdeploy.batch.journal import Journal
from vllmdeploy.batch.loops import Stop, Stopped
from vllmdeploy.batch.progress import Progress
from vllmdeploy.batch.run import run_batch
from vllmdeploy.batch.transport import CallFailed
from vllmdeploy.routing.upstream import Address
from vllmdeploy.wire.faults import OutOfSockets
from vllmdeploy.wire.pool import Pool

ALIVE_S = 60.0  # only a hang runs into it


async def deaf(times: int) -> None:
    """Swallows its first cancellations, as `wait_for` does before Python 3.12."""
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if not times:
                raise
            times -= 1


async def test_a_worker_that_loses_its_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner, "_ASK_AGAIN_S", 0.01)
    keeper = asyncio.ensure_future(deaf(0))

    async def fails() -> None:
        raise ValueError("the first failure")

    with pytest.raises(ValueError, match="the first failure"):
        await asyncio.wait_for(runner._all_or_none([deaf(2), fails()], keeper), ALIVE_S)
    keeper.cancel()
    await asyncio.wait([keeper])


async def test_a_keeper_that_ends_early_ends_the_run() -> None:
    async def returns() -> None:
        return

    keeper = asyncio.ensure_future(returns())
    with pytest.raises(RuntimeError, match="the keeper ended before the rows"):
        await asyncio.wait_for(runner._all_or_none([deaf(0)], keeper), ALIVE_S)


def test_a_sync_that_fails_ends_the_run_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last row is held back, so that only the failing sync can end the run."""
    prompts(tmp_path / "in.jsonl", 20)
    synced = os.fsync
    failing = threading.Event()

    def sync(descriptor: int) -> None:
        if failing.is_set() and threading.current_thread() is not threading.main_thread():
            raise OSError(errno.EIO, "Input/output error")
        synced(descriptor)

    monkeypatch.setattr(os, "fsync", sync)

    def script(asked: Asked) -> Say:
        if asked.prompt == "p20" and asked.nth == 1:
            failing.set()
            return Say(hang=True)
        return echo(asked)

    with serving(script) as upstream:
        spec = spec_of(tmp_path, upstream)
        with pytest.raises(OutputStopped, match="cannot write: Input/output error"):
            run_batch(spec, listener=lambda _: None, say=lambda _: None)
        failing.clear()
        finished = run_batch(spec, listener=lambda _: None, say=lambda _: None)
    assert finished.summary["ok"] == 20


def test_nothing_is_written_behind_a_piece_that_cannot_be_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Journal(tmp_path)
    kept.begin()
    kept.append(1, "ok", b"first\n")
    whole = os.write

    def write(descriptor: int, data: bytes) -> None:
        whole(descriptor, data[:3])
        raise OSError(errno.EIO, "Input/output error")

    def truncate(descriptor: int, size: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(journal, "write_all", write)
    monkeypatch.setattr(os, "ftruncate", truncate)
    with pytest.raises(OutputStopped):
        kept.append(2, "ok", b"second\n")
    monkeypatch.undo()
    with pytest.raises(OutputStopped):
        kept.append(3, "ok", b"third\n")
    assert (tmp_path / "results.jsonl.part").read_bytes() == b"first\nsec"


async def test_having_no_sockets_left_is_waited_for_like_an_upstream_that_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def ask(self: Pool, request: bytes) -> None:
        raise OutOfSockets("Too many open files")

    monkeypatch.setattr(Pool, "ask", ask)
    transport = HttpCalls(timeout=1)
    with pytest.raises(CallFailed, match="Too many open files") as caught:
        await transport.post(Address("127.0.0.1", 1), "/v1/completions", b"{}")
    assert not caught.value.sent
    await transport.close()


def test_a_run_is_stopped_from_another_thread_and_goes_on_later(tmp_path: Path) -> None:
    prompts(tmp_path / "in.jsonl", 40)
    stop = Stop()

    def script(asked: Asked) -> Say:
        if asked.prompt == "p30" and asked.nth == 1:
            stop.ask()
            return Say(hang=True)
        return echo(asked)

    with serving(script) as upstream:
        spec = spec_of(tmp_path, upstream)
        with pytest.raises(Stopped):
            run_batch(spec, listener=_ignore, say=lambda _: None, stop=stop)
        with pytest.raises(Stopped):
            run_batch(spec, listener=_ignore, say=lambda _: None, stop=stop)
        finished = run_batch(spec, listener=_ignore, say=lambda _: None, stop=Stop())
    assert finished.summary["ok"] == 40


def test_an_interrupted_cell_of_a_notebook_ends_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell's loop runs in this thread, the batch in another; Ctrl-C meets the one that waits.

    No real signal: one that comes at a bad moment is lost in Python's own locks.
    """
    begun, ended = threading.Event(), threading.Event()

    async def batch() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def interrupted(self: Future[None], timeout: float | None = None) -> None:
        assert begun.wait(ALIVE_S)
        raise KeyboardInterrupt

    async def cell() -> None:
        loops.run(batch)

    monkeypatch.setattr(Future, "result", interrupted)
    notebook = asyncio.new_event_loop()
    try:
        with pytest.raises(KeyboardInterrupt):
            notebook.run_until_complete(cell())
    finally:
        notebook.close()
    assert ended.is_set()


def test_signals_are_their_owners_again_after_a_run() -> None:
    async def nothing() -> None:
        return

    def own(number: int, frame: object) -> None:
        return

    before = signal.signal(signal.SIGTERM, own)
    try:
        loops.run(nothing)
        assert signal.getsignal(signal.SIGTERM) is own
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def _ignore(_: Progress) -> None:
    return
