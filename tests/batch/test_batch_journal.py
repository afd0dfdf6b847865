"""The output files: whole lines only, no row twice, one runner, the same input."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.batch.durable import OutputStopped, replace_file
from vllmdeploy.batch.entries import Entry, Head, Response, format_entry, read_head
from vllmdeploy.batch.job import Job, check_same, read_job, write_job
from vllmdeploy.batch.journal import Journal, JournalFile, verify
from vllmdeploy.batch.lock import hold, holder
from vllmdeploy.batch.order import sort_journal
from vllmdeploy.errors import Locked, UsageError


def entry(line: int, kind: str = "ok", text: str = "x") -> bytes:
    head = Head(line, 1000.5, 0.25, 1, 2, 3, kind, "http://a:1")
    body = json.dumps({"text": text}).encode()
    return format_entry(Entry(head, f"id-{line}", Response(200, "r", body), "wrong"))


def journal_of(folder: Path, *lines: int, errors: tuple[int, ...] = ()) -> Journal:
    journal = Journal(folder)
    assert list(journal.load()) == []
    journal.begin()
    for line in lines:
        journal.append(line, "ok", entry(line))
    for line in errors:
        journal.append(line, "http_400", entry(line, "http_400"))
    return journal


def loaded(folder: Path) -> Journal:
    journal = Journal(folder)
    for _ in journal.load():
        pass
    return journal


def test_an_entry_is_openai_batch_form_on_one_line() -> None:
    assert entry(7) == (
        b'{"line":7,"run":{"at":1000.500,"seconds":0.2500,"attempts":1,"prompt_tokens":2,'
        b'"completion_tokens":3,"kind":"ok","instance":"http://a:1"},"id":"line-7",'
        b'"custom_id":"id-7","response":{"status_code":200,"request_id":"r",'
        b'"body":{"text": "x"}},"error":null}\n'
    )
    failed = json.loads(entry(8, "http_400"))
    assert failed["error"] == {"code": "http_400", "message": "wrong"}


@given(
    st.builds(
        Head,
        st.integers(1, 10**9),
        st.floats(0, 10**10).map(lambda x: round(x, 3)),
        st.floats(0, 10**5).map(lambda x: round(x, 4)),
        st.integers(0, 99),
        st.integers(0, 10**9),
        st.integers(0, 10**9),
        st.sampled_from(["ok", "http_400", "bad_json"]),
        st.sampled_from(["", "http://[::1]:8000", "https://x.example/pre"]),
    ),
    st.none() | st.text(),
    st.text(),
)
def test_the_head_of_any_entry_is_read_back(head: Head, custom_id: str | None, text: str) -> None:
    line = format_entry(
        Entry(head, custom_id, Response(200, text, b"{}"), text, (("input", b"1"),))
    )
    assert read_head(line[:-1]) == head
    assert line.count(b"\n") == 1
    written = json.loads(line)
    assert (written["custom_id"], written["input"]) == (custom_id, 1)


def test_a_line_torn_at_any_byte_is_cut_and_done_again(tmp_path: Path) -> None:
    whole = entry(1) + entry(2)
    last = entry(3, text="line\u2028 é")
    path = tmp_path / "results.jsonl.part"
    for kept in range(len(last)):
        path.write_bytes(whole + last[:kept])
        journal = loaded(tmp_path)
        assert (1 in journal.done, 2 in journal.done, 3 in journal.done) == (True, True, False)
        journal.begin()
        assert path.read_bytes() == whole
        journal.append(3, "ok", last)
        journal.close()
        assert path.read_bytes() == whole + last


def test_zeros_that_a_power_cut_left_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl.part"
    path.write_bytes(entry(1) + bytes(100) + b"\n" + entry(2))
    journal = loaded(tmp_path)
    journal.begin()
    journal.close()
    assert path.read_bytes() == entry(1)


def test_a_foreign_line_in_the_middle_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl.part"
    path.write_bytes(entry(1) + b"mine\n" + entry(2))
    with pytest.raises(UsageError, match=r"the line at byte \d+ was not written by a batch run"):
        loaded(tmp_path)
    assert path.read_bytes() == entry(1) + b"mine\n" + entry(2)


def test_a_row_in_both_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(entry(1))
    (tmp_path / "errors.jsonl.part").write_bytes(entry(1, "http_400"))
    with pytest.raises(UsageError, match="row 1 is there twice"):
        loaded(tmp_path)


def test_a_row_finished_twice_is_a_bug_that_writes_nothing(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, 1)
    with pytest.raises(AssertionError):
        journal.append(1, "http_400", entry(1, "http_400"))
    journal.close()
    assert (tmp_path / "errors.jsonl.part").read_bytes() == b""


def test_finished_files_get_their_names_and_open_again(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, 1, 3, errors=(2,))
    journal.sync()
    journal.finish()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["errors.jsonl", "results.jsonl"]
    assert [stored.head.line for stored in verify(tmp_path, 3)] == [1, 3, 2]
    again = loaded(tmp_path)
    assert (again.ok, again.failed, len(again.done)) == (2, 1, 3)


def test_a_kill_between_the_two_renames_is_no_loss(tmp_path: Path) -> None:
    journal = journal_of(tmp_path, 1, errors=(2,))
    journal.errors.finish()
    journal.close()
    again = loaded(tmp_path)
    assert len(again.done) == 2
    again.begin()
    again.finish()
    assert [stored.head.line for stored in verify(tmp_path, 2)] == [1, 2]


def test_a_sum_that_is_wrong_is_found_before_the_end(tmp_path: Path) -> None:
    journal_of(tmp_path, 1, 2).finish()
    with pytest.raises(AssertionError, match="2 rows are in the output, 3 in the input"):
        list(verify(tmp_path, 3))


def test_dropped_errors_are_to_be_done_again(tmp_path: Path) -> None:
    journal_of(tmp_path, 1, 3, errors=(2, 4)).finish()
    journal = loaded(tmp_path)
    journal.begin()
    journal.drop_errors()
    assert (2 in journal.done, 4 in journal.done, len(journal.done)) == (False, False, 2)
    journal.append(2, "ok", entry(2))
    journal.append(4, "http_400", entry(4, "http_400"))
    journal.finish()
    assert [stored.head.line for stored in verify(tmp_path, 4)] == [1, 3, 2, 4]


def test_rows_are_put_into_the_order_of_the_input(tmp_path: Path) -> None:
    lines = random.Random(3).sample(range(1, 200), 199)
    journal = journal_of(tmp_path, *lines[:150], errors=tuple(lines[150:]))
    sort_journal(journal, 199)
    journal.finish()
    assert (tmp_path / "results.jsonl").read_bytes() == b"".join(map(entry, sorted(lines[:150])))
    errors = b"".join(entry(line, "http_400") for line in sorted(lines[150:]))
    assert (tmp_path / "errors.jsonl").read_bytes() == errors
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_leaves_whole_lines_only(tmp_path: Path) -> None:
    """A file size limit refuses a write half way, as a full disk does."""
    script = (
        "import resource, signal, sys, pathlib\n"
        "from tests.batch.test_batch_journal import entry, journal_of\n"
        "from vllmdeploy.batch.durable import OutputStopped\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (700, resource.RLIM_INFINITY))\n"
        "try: journal_of(pathlib.Path(sys.argv[1]), *range(1, 50))\n"
        "except OutputStopped as error: print(error.message)\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", script, str(tmp_path)),
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    path = tmp_path / "results.jsonl.part"
    assert done.stdout == f"{path}: cannot write: File too large\n"
    assert path.read_bytes() == entry(1) + entry(2)
    assert len(loaded(tmp_path).done) == 2
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_million_done_rows_take_little_memory(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for line in range(1, 1_000_001):
        journal.done.add(line)
    assert len(journal.done) == 1_000_000
    assert sys.getsizeof(journal.done._bits) < 300_000  # pyright: ignore[reportPrivateUsage]


def test_one_runner_at_a_time_and_it_is_named(tmp_path: Path) -> None:
    assert holder(tmp_path) is None
    with hold(tmp_path):
        with pytest.raises(Locked) as refused, hold(tmp_path):
            pass
        assert f"another run writes here: pid {os.getpid()} on " in str(refused.value)
        assert str(holder(tmp_path)).startswith(f"pid {os.getpid()} on ")
    assert holder(tmp_path) is None
    with hold(tmp_path):
        pass


def test_another_process_is_refused_too_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from vllmdeploy.batch.lock import hold\n"
        "with hold(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        (sys.executable, "-c", script, str(tmp_path)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Locked, match=f"pid {other.pid} on"), hold(tmp_path):
            pass
        other.kill()
        other.wait()
    with hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="cannot write here"),
        hold(tmp_path / "none"),
    ):
        pass


def test_the_job_is_read_back_and_compared(tmp_path: Path) -> None:
    job = Job("/in.jsonl", "ab" * 32, 5, {"model": "m"})
    assert read_job(tmp_path) is None
    write_job(tmp_path, job)
    assert read_job(tmp_path) == job
    check_same(tmp_path, job, job)
    with pytest.raises(UsageError) as changed:
        check_same(tmp_path, job, Job("/in.jsonl", "cd" * 32, 6, {"model": "m"}))
    assert str(changed.value) == (
        f"/in.jsonl: the input is not the one that {tmp_path} was begun with\n"
        "  then 5 lines, sha256 abababababab; now 6 lines, sha256 cdcdcdcdcdcd\n"
        "  -> --restart begins again and drops what is there; -o names another folder"
    )
    with pytest.raises(UsageError, match="begun with other settings: model was m, is n; parse was"):
        check_same(tmp_path, job, Job("/in.jsonl", job.sha256, 5, {"model": "n", "parse": "json"}))


@pytest.mark.parametrize("text", ["", "[]", '{"version":2}', '{"version":1}', "\xff"])
def test_a_job_file_that_is_damaged_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"job\.json: "):
        read_job(tmp_path)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    replace_file(path, b"one")
    replace_file(path, b"two", sync=False)
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]
    with pytest.raises(OutputStopped, match="cannot write: No such file"):
        replace_file(tmp_path / "none" / "x", b"")


def test_a_journal_file_is_removed_under_both_names(tmp_path: Path) -> None:
    file = JournalFile(tmp_path, "results.jsonl")
    file.part.write_bytes(b"x")
    file.final.write_bytes(b"x")
    file.remove()
    assert not file.exists()
