from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from vllmdeploy.node.logs import LINE_LIMIT, Echo, Lines, RotatedLog, tail


def test_lines_are_whole_whatever_the_pieces() -> None:
    lines = Lines()
    assert [lines.feed(part) for part in (b"on", b"e\ntw", b"o\n\nthr")] == [
        [],
        ["one"],
        ["two", ""],
    ]
    assert lines.rest() == ["thr"]
    assert lines.rest() == []


def test_a_line_without_end_is_cut_at_the_limit() -> None:
    lines = Lines()
    found = [line for _ in range(10) for line in lines.feed(b"x" * 10_000)]
    assert {len(line) for line in found} == {LINE_LIMIT}
    assert len("".join((*found, *lines.rest()))) == 100_000


def test_progress_bars_colours_and_odd_bytes_become_plain_text() -> None:
    raw = b"0%\r50%\r100%\n\x1b[32mok\x1b[39m\r\n\xff\n"
    assert Lines().feed(raw) == ["100%", "ok", "�"]


def test_a_log_is_rotated_at_its_size_and_keeps_its_count(tmp_path: Path) -> None:
    log = RotatedLog(tmp_path / "ray.log", size_limit=20, files=3)
    for number in range(12):
        log.write(f"line {number:02d}")
    log.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "ray.log": "line 10\nline 11\n",
        "ray.log.1": "line 08\nline 09\n",
        "ray.log.2": "line 06\nline 07\n",
    }
    assert tail(tmp_path / "ray.log", 3) == ["line 09", "line 10", "line 11"]
    assert len(tail(tmp_path / "ray.log", 100)) == 6


def test_one_file_only_is_possible(tmp_path: Path) -> None:
    log = RotatedLog(tmp_path / "ray.log", size_limit=10, files=1)
    log.write("aaaaaaa")
    log.write("bbbbbbb")
    log.close()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["bbbbbbb\n"]


def test_a_log_is_continued_over_a_restart(tmp_path: Path) -> None:
    for word in ("one", "two"):
        log = RotatedLog(tmp_path / "ray.log", size_limit=100, files=2)
        log.write(word)
        log.close()
    assert (tmp_path / "ray.log").read_text() == "one\ntwo\n"


def test_a_log_that_cannot_be_written_is_a_problem_said_not_raised(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    log = RotatedLog(tmp_path / "taken" / "ray.log", size_limit=100, files=2)
    log.write("x")
    assert log.problem == f"log {tmp_path / 'taken' / 'ray.log'}: File exists"


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("safe\n")
    (tmp_path / "ray.log").symlink_to(tmp_path / "victim")
    log = RotatedLog(tmp_path / "ray.log", size_limit=100, files=2)
    log.write("x")
    assert log.problem
    assert (tmp_path / "victim").read_text() == "safe\n"


def test_an_echo_whose_reader_is_stuck_drops_lines_and_returns() -> None:
    read, write = os.pipe()
    try:
        echo = Echo(write)
        for _ in range(100):
            echo.write("ray", "x" * 5000)
        assert echo.dropped > 0
        assert os.read(read, 10) == b"[ray] xxxx"
    finally:
        os.close(read)
        os.close(write)


def test_an_echo_to_a_closed_reader_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        echo = Echo(write)
        echo.write("ray", "x")
        assert echo.dropped == 1
    finally:
        os.close(write)


def test_the_tail_of_nothing_is_nothing(tmp_path: Path) -> None:
    assert tail(tmp_path / "none.log", 5) == []
    (tmp_path / "empty.log").touch()
    assert tail(tmp_path / "empty.log", 5) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_the_tail_is_as_long_as_asked(tmp_path: Path, count: int) -> None:
    (tmp_path / "n.log").write_text("a\nb\n")
    assert tail(tmp_path / "n.log", count) == ["a", "b"][2 - count :]


def test_rotation_leaks_no_open_file(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    log = RotatedLog(tmp_path / "ray.log", size_limit=1, files=2)
    for _ in range(min(200, resource.getrlimit(resource.RLIMIT_NOFILE)[0])):
        log.write("x")
    log.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
