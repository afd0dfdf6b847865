"""What a person reads when a hub or this machine does not give what was asked for."""

from __future__ import annotations

import errno
import socket
import ssl

import pytest

from vllmdeploy.effects.hub import worded
from vllmdeploy.effects.hub_errors import read
from vllmdeploy.errors import EXIT_COMMAND, EXIT_USAGE
from vllmdeploy.tools.hub import (
    Done,
    Failed,
    FileHashes,
    Hasher,
    Job,
    Listing,
    RemoteFile,
    Report,
    Trouble,
    Waiting,
    Wanted,
    job_line,
    parse_job,
    parse_report,
    report_line,
)

WANTED = Wanted(source="huggingface", repo="o/m", revision="main", token="hf_secret")


@pytest.mark.parametrize("trouble", list(Trouble))
def test_every_trouble_has_words_an_exit_code_and_a_next_step(trouble: Trouble) -> None:
    error = worded(WANTED, Failed(trouble, "why"))
    assert error.exit_code in (EXIT_USAGE, EXIT_COMMAND)
    assert "o/m" in error.message or "huggingface" in error.message
    assert error.hint or trouble in (Trouble.DATASET, Trouble.REVISION)
    assert "hf_secret" not in str(error)


def test_a_full_disk_is_about_this_machine() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    trouble = read(full, {})
    assert trouble is not None
    assert str(worded(WANTED, Failed(trouble.trouble, trouble.message, "a.safetensors"))) == (
        "this machine: exit 1: download a.safetensors of o/m\n"
        "  [Errno 28] No space left on device\n"
        "  -> mend that, then run it again: files that are finished stay"
    )


@pytest.mark.parametrize(
    "error",
    [ConnectionResetError("cut"), TimeoutError("late"), ssl.SSLError("tls"), socket.gaierror(-2)],
)
def test_what_the_network_did_may_pass(error: Exception) -> None:
    trouble = read(error, {})
    assert trouble is not None
    assert trouble.trouble.passing


def test_a_bug_is_not_explained_away() -> None:
    assert read(TypeError("bug"), {"HubError": Trouble.OTHER}) is None


class Answer:
    def __init__(self, status: int, **headers: str) -> None:
        self.status_code = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class AnsweredError(Exception):
    def __init__(self, response: Answer) -> None:
        super().__init__("said no")
        self.response = response


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        (401, Trouble.GATED),
        (403, Trouble.GATED),
        (404, Trouble.CHANGED),
        (418, Trouble.OTHER),
        (429, Trouble.LIMITED),
        (503, Trouble.UNREACHABLE),
    ],
)
def test_a_status_says_what_happened(status: int, trouble: Trouble) -> None:
    found = read(AnsweredError(Answer(status)), {})
    assert found is not None
    assert found.trouble is trouble


@pytest.mark.parametrize(("after", "seconds"), [("7", 7.0), ("soon", None), ("-1", None)])
def test_how_long_to_wait_is_read_or_not_known(after: str, seconds: float | None) -> None:
    found = read(AnsweredError(Answer(429, Retry_After=after)), {})
    assert found is not None
    assert found.after_s == seconds


@pytest.mark.parametrize(
    "report",
    [
        Listing(commit="c", gated=True, files=(RemoteFile("a", 1, "b"),), faults=("f",)),
        Done("a b", "0" * 64, 3, fetched=True),
        Waiting("a", "limited"),
        Failed(Trouble.GATED, "no", "a"),
    ],
)
def test_a_report_travels_as_one_line(report: Report) -> None:
    line = report_line(report)
    assert "\n" not in line
    assert parse_report(line) == report


@pytest.mark.parametrize("line", ["", "progress 3 %", "[1]", "{}", "[" * 100_000])
def test_what_a_library_prints_is_no_report(line: str) -> None:
    assert parse_report(line) is None


def test_a_job_travels_as_one_line_and_its_token_does_not_show() -> None:
    job = Job(wanted=WANTED, folder="/in", commit="c", files=(RemoteFile("a", 1),), at_once=3)
    assert parse_job(job_line(job)) == job
    assert "hf_secret" not in repr(job)


def test_a_file_is_held_to_whatever_the_hub_knows() -> None:
    hasher = Hasher(3)
    hasher.feed(b"abc")
    found = hasher.result()
    assert found == FileHashes(
        3,
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f",
    )
    assert RemoteFile("a", 3, sha256=found.sha256).matches(found)
    assert RemoteFile("a", 3, git_sha1=found.git_sha1).matches(found)
    assert RemoteFile("a", -1).matches(found)
    assert not RemoteFile("a", 4).matches(found)
    assert not RemoteFile("a", 3, sha256="0" * 64).matches(found)
    assert not RemoteFile("a", 3, git_sha1="0" * 40).matches(found)
