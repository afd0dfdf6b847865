"""A closed terminal and SIGTERM end a command as Ctrl-C does."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

# Says "begun", waits, tidies up with words, and leaves a file to say that it came to its end.
_PROGRAM = """
import signal, sys, time
from pathlib import Path
from vllmdeploy.cli.endings import end_in_order
# Whoever runs the tests may have either; a test has what it says.
signal.signal(signal.SIGHUP, signal.SIG_IGN if "nohup" in sys.argv else signal.SIG_DFL)
end_in_order()
try:
    print("begun", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    for _ in range(3):
        print("tidying up", flush=True)
        time.sleep(0.05)
    Path(sys.argv[1]).write_text("tidy")
    sys.exit(130)
"""


def _begun(
    tmp_path: Path, *before: str, nohup: bool = False, stdout: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    ignored = ("nohup",) if nohup else ()
    return subprocess.Popen(
        [*before, sys.executable, "-c", _PROGRAM, str(tmp_path / "end"), *ignored],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_tidies_up_even_when_it_is_told_twice(tmp_path: Path, number: signal.Signals) -> None:
    process = _begun(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    assert process.stdout.readline() == "tidying up\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "end").read_text() == "tidy"


def test_a_script_s_background_job_ends_too(tmp_path: Path) -> None:
    """A shell without job control starts those with SIGINT ignored."""
    process = _begun(tmp_path, "sh", "-c", 'trap "" INT; exec "$@"', "sh")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert (tmp_path / "end").read_text() == "tidy"


def test_nohup_is_kept(tmp_path: Path) -> None:
    process = _begun(tmp_path, nohup=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_words_to_a_terminal_that_is_gone_do_not_stop_it(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = _begun(tmp_path, stdout=theirs)
    os.close(theirs)
    assert os.read(ours, 100).startswith(b"begun")
    os.close(ours)  # from now on every word to the terminal fails
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 130
    assert (tmp_path / "end").read_text() == "tidy"
