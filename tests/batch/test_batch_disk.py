"""A disk that is full or may not be written, for real: on a small tmpfs of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.batch.upstream import completion, serving
from vllmdeploy.batch.durable import OutputStopped
from vllmdeploy.batch.pipeline import run_pipeline
from vllmdeploy.errors import UsageError

Mount = Callable[[str], Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mounts, or mounts again with other options, a tmpfs; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a tmpfs needs root")

    def mounted(options: str) -> Path:
        again = "remount," if folder.is_mount() else ""
        done = subprocess.run(
            ("mount", "-t", "tmpfs", "-o", f"{again}{options}", "tmpfs", str(folder)),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(("umount", str(folder)), check=True)


def write_input(path: Path, rows: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"p{n}"}) + "\n" for n in range(rows)))
    return path


def test_a_full_disk_stops_the_run_and_space_lets_it_go_on(tmp_path: Path, mount: Mount) -> None:
    source = write_input(tmp_path / "in.jsonl", 3000)
    disk = mount("size=1m")
    with serving(lambda asked: completion("x" * 500)) as upstream:
        with pytest.raises(OutputStopped, match="cannot write: No space left on device") as full:
            run_pipeline(source, disk / "out", upstream.url)
        assert "free some space, then run the same command" in str(full.value)
        first = len(upstream.asked)
        assert 200 < first < 3000
        mount("size=64m")
        paths = run_pipeline(source, disk / "out", upstream.url)
    lines = [json.loads(row)["line"] for row in paths.results.read_bytes().splitlines()]
    assert sorted(lines) == list(range(1, 3001))
    assert len(upstream.asked) - 3000 <= 256, "only rows that were in flight are asked again"


def test_a_folder_that_may_not_be_written_is_refused_before_anything_is_sent(
    tmp_path: Path, mount: Mount
) -> None:
    source = write_input(tmp_path / "in.jsonl", 3)
    disk = mount("size=1m,ro")
    with serving() as upstream:
        with pytest.raises(UsageError, match="Read-only file system"):
            run_pipeline(source, disk / "out", upstream.url)
        with pytest.raises(UsageError, match="cannot write here: Read-only file system"):
            run_pipeline(source, disk, upstream.url)
        assert upstream.asked == []


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 3)
    with pytest.raises(UsageError, match="cannot make the output folder: File exists"):
        run_pipeline(source, source, "http://127.0.0.1:1")
