"""Downloads whose process is ended at a moment when bytes are under way."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.hub_server import Hub, HubRepo, hub_server

FILES = {"config.json": b"{}", "a.safetensors": b"1" * 400_000, "b.safetensors": b"2" * 90_000}


@contextmanager
def downloading(hub: Hub, folder: Path) -> Generator[subprocess.Popen[str]]:
    """The command line itself, at the moment when the large file has half arrived."""
    (folder / "config.env").write_text(
        f"MODEL_PATH={folder}/models\nHF_ENDPOINT={hub.endpoint}\nCLUSTER_NAME=test-interrupted\n"
    )
    with subprocess.Popen(
        (
            *(sys.executable, "-m", "vllmdeploy", "--config", str(folder / "config.env")),
            *("model", "download", "owner/model", "--yes", "--no-sync"),
        ),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def children(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(pid) for pid in listed.split()]


def gone(pid: int) -> bool:
    """Whether the process has ended; waits for it through its file descriptor, not a clock."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ready, _, _ = select.select([descriptor], [], [], 20)
        return bool(ready)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_download_that_was_ended_leaves_nothing_running_and_goes_on(
    tmp_path: Path, how: signal.Signals
) -> None:
    with hub_server(owner__model=HubRepo(FILES)) as hub:
        hub.hold, hub.held = threading.Event(), threading.Semaphore(0)
        with downloading(hub, tmp_path) as process:
            assert hub.held.acquire(timeout=60)
            workers = children(process)
            assert workers
            process.send_signal(how)
            assert process.wait(20) == (130 if how is signal.SIGINT else -signal.SIGKILL)
            assert all(gone(pid) for pid in workers)
        assert not (tmp_path / "models/model").exists()
        hub.hold.set()
        hub.hold = None
        hub.asked.clear()
        with downloading(hub, tmp_path) as process:
            assert process.wait(60) == 0
        assert "a.safetensors" in hub.downloads()
    found = {path: (tmp_path / "models/model" / path).read_bytes() for path in FILES}
    assert found == FILES
    assert (tmp_path / "models/model/.vllmdeploy/READY").exists()


def test_two_downloads_of_one_model_do_not_meet(tmp_path: Path) -> None:
    with hub_server(owner__model=HubRepo(FILES)) as hub:
        hub.hold, hub.held = threading.Event(), threading.Semaphore(0)
        with downloading(hub, tmp_path) as first:
            assert hub.held.acquire(timeout=60)
            with downloading(hub, tmp_path) as second:
                said = second.communicate(timeout=60)[1]
                assert second.returncode == 7
                assert "model is being downloaded by another run on this machine" in said
            first.kill()
