"""The same work on many things at once."""

from __future__ import annotations

import _thread
import threading

import pytest

from vllmdeploy.effects.fanout import both, each
from vllmdeploy.errors import HostUnreachable


def test_answers_keep_the_order_of_the_items_and_an_error_takes_its_items_place() -> None:
    gone = HostUnreachable("b", "no route")

    def work(host: str) -> str:
        if host == "b":
            raise gone
        return host.upper()

    assert each(["a", "b", "c"], work, at_once=2) == ["A", gone, "C"]
    assert each([], work) == []


def test_no_more_than_asked_for_run_at_once_and_that_many_do() -> None:
    together = threading.Barrier(3)
    running, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(20)
        with lock:
            running -= 1

    each(range(9), work, at_once=3)
    assert most == 3


def test_a_bug_is_raised_and_no_further_item_is_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> None:
        begun.append(item)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        each(range(1000), work, at_once=1)
    assert begun == [0]


def test_after_ctrl_c_the_caller_does_not_wait_for_work_under_way() -> None:
    held = threading.Event()

    def work(_: int) -> None:
        _thread.interrupt_main()
        held.wait(60)

    with pytest.raises(KeyboardInterrupt):
        each([1], work)
    held.set()


def test_two_questions_run_at_once() -> None:
    met = threading.Barrier(2, timeout=30)

    def meet(name: str) -> str:
        met.wait()
        return name

    assert both(lambda: meet("a"), lambda: meet("b")) == ("a", "b")


@pytest.mark.parametrize("broken", [HostUnreachable("b", "no route"), ValueError("a bug")])
def test_an_error_of_either_of_two_questions_is_raised(broken: Exception) -> None:
    def fail() -> str:
        raise broken

    with pytest.raises(type(broken)):
        both(fail, lambda: "b")
    with pytest.raises(type(broken)):
        both(lambda: "a", fail)
