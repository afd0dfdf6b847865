"""The lock's shell commands, really run."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Command, Result
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools import lock
from vllmdeploy.tools.lock import Holder, LockState

HERE = LocalShell("here")


def holder(nonce: str, what: str = "up") -> Holder:
    return Holder(who="ann", machine="laptop", boot_id="b", pid=42, what=what, nonce=nonce)


def run(command: Command) -> Result:
    return HERE.run(command)


def state(path: Path) -> LockState:
    fact = lock.state(str(path))
    return fact.parse(run(fact.command))


def test_the_first_has_it_and_the_second_is_told(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    assert run(lock.take(str(path), holder("a1"))).ok
    second = run(lock.take(str(path), holder("b2")))
    assert lock.taken_by_another(second)
    seen = state(path)
    assert (seen.held, seen.holder) == (True, holder("a1"))
    assert 0 <= seen.age_s < 60
    assert [one.name for one in path.parent.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    "what", ['up "nonce": "b2"', "$(touch x); `id`", "multi\nline", "日本語", '{"nonce": "b2"}']
)
def test_only_the_holder_can_beat_and_release(tmp_path: Path, what: str) -> None:
    path = str(tmp_path / "lock")
    assert run(lock.take(path, holder("a1", what))).ok
    assert lock.lost(run(lock.beat(path, "b2")))
    assert run(lock.release(path, "b2")).ok
    assert state(tmp_path / "lock").holder == holder("a1", what)
    assert run(lock.beat(path, "a1")).ok
    assert run(lock.release(path, "a1")).ok
    assert state(tmp_path / "lock") == LockState(held=False)
    assert list(tmp_path.iterdir()) == []


def test_a_beat_says_that_the_holder_lives(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    run(lock.take(str(path), holder("a1")))
    os.utime(path / "heartbeat", (1, 1))
    os.utime(path / "holder", (1, 1))
    assert state(path).stale
    assert run(lock.beat(str(path), "a1")).ok
    seen = state(path)
    assert (seen.stale, seen.silent_s < 60, seen.age_s > 1_000_000_000) == (False, True, True)


def test_a_lock_that_is_gone_is_lost(tmp_path: Path) -> None:
    assert lock.lost(run(lock.beat(f"{tmp_path}/lock", "a1")))
    assert run(lock.release(f"{tmp_path}/lock", "a1")).ok


def test_a_failure_is_not_taken_for_another_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    result = run(lock.take(f"{tmp_path}/file/lock", holder("a1")))
    assert result.status == 1
    assert not lock.taken_by_another(result)
    assert "file" in result.stderr


def test_a_host_whose_mv_cannot_is_named_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mv").write_text("#!/bin/sh\necho 'mv: unknown option: T' >&2\nexit 1\n", "utf-8")
    (tmp_path / "mv").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    result = run(lock.take(f"{tmp_path}/lock", holder("a1")))
    assert (result.status, result.stderr) == (1, "mv: unknown option: T\n")
    assert [one.name for one in tmp_path.iterdir()] == ["mv"]


def test_a_lock_without_a_record_is_a_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "stranger").write_text("", "utf-8")
    seen = state(tmp_path / "lock")
    assert (seen.held, seen.holder, seen.stale) == (True, None, False)
    assert lock.taken_by_another(run(lock.take(f"{tmp_path}/lock", holder("a1"))))
    run(lock.break_(f"{tmp_path}/lock"))
    assert state(tmp_path / "lock") == LockState(held=False)


@pytest.mark.parametrize(
    "change", [{"pid": "1"}, {"pid": True}, {"who": 1}, {"nonce": None}, {"boot_id": []}]
)
def test_a_record_of_other_types_is_not_a_holder(change: dict[str, object]) -> None:
    said = json.dumps({**asdict(holder("a1")), **change})
    seen = lock.state("/l").parse(Result(0, f"held 5 6\n{said}"))
    assert (seen.holder, seen.age_s, seen.silent_s) == (None, 5, 6)


def test_a_holder_is_named_for_a_person() -> None:
    assert str(holder("a")) == "ann@laptop (pid 42), doing `up`"


@given(st.text(), st.text())
def test_no_text_ends_the_reading(ages: str, record: str) -> None:
    for said in (ages, f"held {ages}\n{record}", f"held\n{record}"):
        lock.state("/l").parse(Result(0, said))
