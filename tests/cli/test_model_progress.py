"""How a download's progress reads."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from vllmdeploy.cli.model_progress import line, time_text, words
from vllmdeploy.effects.hub import Progress

HALF = Progress(
    bytes_done=2**29, bytes_total=2**30, files_done=3, files_total=12, bytes_per_s=2**22
)


def test_a_line_has_amount_rate_time_left_and_files() -> None:
    assert words(HALF) == "512.0 MiB of 1.0 GiB (50 %), 4.0 MiB/s, 2:08 left, 3 of 12 files"


def test_without_a_rate_nobody_knows_how_long() -> None:
    still = Progress(
        bytes_done=0, bytes_total=10, files_done=0, files_total=1, waiting="a: limited"
    )
    assert words(still) == "0 B of 10 B (0 %), 0 B/s, 0 of 1 files, a: limited"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3661, "1:01:01")]
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_said_meanwhile_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    with line() as at:
        at.tell("m: 20 % of 2 hosts")
        time.sleep(0.6)  # it is drawn four times a second
        at.say("gpu-01: m is ready\x1b[2J")
        at.tell("m: 90 % of 2 hosts")
    lines = screen.getvalue().replace("\r", "\n").split("\n")
    shown = [re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", one) for one in lines]
    assert "gpu-01: m is ready\\x1b[2J" in shown
