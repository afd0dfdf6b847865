"""Carrying a plan out: order, failures, waits, stopping; nothing here knows what a step means."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fakes import FakeFleet, FakeShell, on
from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.plan import Action, Plan, Run, Step, Wait
from vllmdeploy.effects.execute import (
    Event,
    Finished,
    Outcome,
    Started,
    StepOutcome,
    Stop,
    Waiting,
    execute,
    first_error,
)
from vllmdeploy.errors import CommandFailed, HostUnreachable, NotHealthy


def run(word: str) -> Run:
    return Run(Command((word,)))


def step(host: str, subject: str, *needs: str, action: Action | None = None) -> Step:
    return Step(host, "do", subject, "asked", action or run(subject), needs, hint="look there")


def ignore(event: Event) -> None:
    pass


def shown(outcomes: tuple[StepOutcome, ...]) -> list[str]:
    return [
        f"{one.step.key} {one.outcome.value}{' ' if one.because else ''}{one.because}"
        for one in outcomes
    ]


def test_a_failed_step_skips_only_what_needs_it() -> None:
    fleet = FakeFleet(on("bad", exit_code=125, stderr="no space left"), on("good"))
    plan = Plan(
        (
            step("a", "bad"),
            step("b", "good"),
            step("a", "later", "a: do bad"),
            step("a", "latest", "a: do later"),
            step("b", "good too", "b: do good", action=run("good")),
        )
    )
    outcomes = execute(plan, fleet, ignore)
    assert shown(outcomes) == [
        "a: do bad failed",
        "b: do good done",
        "a: do later skipped needs `a: do bad`",
        "a: do latest skipped needs `a: do later`",
        "b: do good too done",
    ]
    assert isinstance(outcomes[0].error, CommandFailed)
    assert str(outcomes[0].error) == ("a: do bad: exit 125: bad\n  no space left\n  -> look there")
    assert first_error(outcomes) is outcomes[0].error
    assert first_error(outcomes[1:]) is None


def test_needs_come_first_wherever_they_stand_in_the_plan() -> None:
    shell = FakeShell(on("first"), on("second"))
    plan = Plan((step("a", "second", "a: do first"), step("a", "first")))
    outcomes = execute(plan, {"a": shell}, ignore)
    assert shell.history == ["a: first", "a: second"]
    assert [one.step.subject for one in outcomes] == ["second", "first"]


def test_hosts_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=30)

    def meet(command: Command) -> Result:
        together.wait()
        return Result(0)

    fleet = FakeFleet(on("meet", answer=meet), hosts=("a", "b", "c"))
    outcomes = execute(Plan(tuple(step(host, "meet") for host in "abc")), fleet, ignore)
    assert {one.outcome for one in outcomes} == {Outcome.DONE}


def test_a_host_that_goes_away_fails_its_step() -> None:
    fleet = FakeFleet(on("x", host="a", raises=HostUnreachable("a", "gone")), on("x"))
    outcomes = execute(Plan((step("a", "x"), step("b", "x"))), fleet, ignore)
    assert shown(outcomes) == ["a: do x failed", "b: do x done"]


def test_events_tell_what_happens_in_order() -> None:
    events: list[Event] = []
    shell = FakeShell(on("bad", exit_code=1))
    plan = Plan((step("a", "bad"), step("a", "later", "a: do bad")))
    outcomes = execute(plan, {"a": shell}, events.append)
    assert events == [Started(plan.steps[0]), Finished(outcomes[0]), Finished(outcomes[1])]


def test_a_bug_in_a_step_is_raised_and_nothing_more_begins() -> None:
    def bug(command: Command) -> Result:
        raise ZeroDivisionError

    shell, stop = FakeShell(on("bug", answer=bug)), Stop.new()
    with pytest.raises(ZeroDivisionError):
        execute(
            Plan((step("a", "bug"), step("a", "x", "a: do bug"))), {"a": shell}, ignore, stop=stop
        )
    assert stop.event.is_set()
    assert shell.history == ["a: bug"]


def test_steps_that_need_each_other_are_a_bug_and_no_endless_wait() -> None:
    plan = Plan((step("a", "1", "a: do 2"), step("a", "2", "a: do 1")))
    with pytest.raises(ValueError, match="these steps need each other"):
        execute(plan, {"a": FakeShell()}, ignore)


def test_an_empty_plan_does_nothing() -> None:
    assert execute(Plan(), {}, ignore) == ()


def waiting(
    missing: Callable[[Result], str | None],
    *,
    limit_s: float = 30,
    every_s: float = 0.001,
    explain: tuple[tuple[str, Command], ...] = (),
) -> Wait:
    return Wait(Command(("ask",)), missing, limit_s, every_s, explain)


def test_a_wait_asks_until_nothing_is_missing_and_tells_each_change_once() -> None:
    answers: Iterator[str | None] = iter(["2 hosts", "2 hosts", "1 host", None])
    events: list[Event] = []
    shell = FakeShell(on("ask"))
    plan = Plan((step("a", "x", action=waiting(lambda result: next(answers))),))
    (outcome,) = execute(plan, {"a": shell}, events.append)
    assert outcome.outcome is Outcome.DONE
    assert [one.missing for one in events if isinstance(one, Waiting)] == ["2 hosts", "1 host"]
    assert shell.history == ["a: ask"] * 4


def test_a_patient_question_is_asked_once_there_is_something_to_wait_for() -> None:
    answers: Iterator[str | None] = iter(["starting", "starting", None])
    shell = FakeShell(on("ask"), on("ask-patiently"))
    patient = Command(("ask-patiently",), limit_s=13)
    action = replace(waiting(lambda result: next(answers)), patient=patient)
    execute(Plan((step("a", "x", action=action),)), {"a": shell}, ignore)
    assert shell.history == ["a: ask", "a: ask-patiently", "a: ask-patiently"]
    assert shell.commands[1][1].limit_s == 13


def test_a_wait_that_is_over_says_what_is_missing_and_who_said_what_last() -> None:
    logs = "".join(f"line {number}\n\n" for number in range(1, 9))
    fleet = FakeFleet(
        on("ask"),
        on("logs", host="a", stdout=logs),
        on("logs", host="b", raises=HostUnreachable("b", "gone")),
    )
    action = waiting(
        lambda result: "b is not in the cluster",
        limit_s=0,
        explain=(("a", Command(("logs", "a"))), ("b", Command(("logs", "b")))),
    )
    (outcome,) = execute(Plan((step("a", "x", action=action),)), fleet, ignore)
    assert isinstance(outcome.error, NotHealthy)
    assert str(outcome.error) == (
        "a: do x: not within 0 s: b is not in the cluster\n"
        "  a: logs a\n"
        "    line 3\n    line 4\n    line 5\n    line 6\n    line 7\n    line 8\n"
        "  b: b: gone\n"
        "  -> look there"
    )


def test_a_single_question_never_outlasts_the_wait() -> None:
    shell = FakeShell(on("ask"))
    action = Wait(Command(("ask",), limit_s=60), lambda result: None, limit_s=5)
    execute(Plan((step("a", "x", action=action),)), {"a": shell}, ignore)
    assert 1 <= shell.commands[0][1].limit_s <= 5


def test_stop_ends_a_wait_and_begins_nothing_more() -> None:
    stop = Stop.new()

    def missing(result: Result) -> str | None:
        stop.because = "the lock was taken away"
        stop.event.set()
        return "1 host"

    shell = FakeShell(on("ask"), on("other"))
    plan = Plan(
        (
            step("a", "x", action=waiting(missing, every_s=3600, limit_s=7200)),
            step("a", "after", "a: do x"),
            step("a", "unrelated", "a: do after"),
        )
    )
    outcomes = execute(plan, {"a": shell}, ignore, stop=stop)
    assert shown(outcomes) == [
        "a: do x failed",
        "a: do after skipped the lock was taken away",
        "a: do unrelated skipped the lock was taken away",
    ]
    assert str(outcomes[0].error) == "a: do x: given up (the lock was taken away): 1 host"


def test_a_stop_before_the_beginning_skips_all() -> None:
    stop = Stop.new()
    stop.event.set()
    outcomes = execute(Plan((step("a", "x"),)), {"a": FakeShell()}, ignore, stop=stop)
    assert shown(outcomes) == ["a: do x skipped interrupted"]


def test_ctrl_c_returns_at_once_while_a_step_hangs() -> None:
    begun, never = threading.Event(), threading.Event()

    def hang(command: Command) -> Result:
        begun.set()
        never.wait()
        return Result(0)

    def interrupt() -> None:
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    stop = Stop.new()
    threading.Thread(target=interrupt, daemon=True).start()
    plan = Plan((step("a", "hang"), step("a", "x", "a: do hang")))
    with pytest.raises(KeyboardInterrupt):
        execute(plan, {"a": FakeShell(on("hang", answer=hang))}, ignore, stop=stop)
    assert stop.event.is_set()
    never.set()


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, frozenset[str]]:
    """Plans whose needs point back, in any order, and the steps that will fail."""
    steps: list[Step] = []
    for number in range(draw(st.integers(1, 12))):
        needs = draw(st.sets(st.sampled_from([one.key for one in steps]))) if steps else set[str]()
        steps.append(step(draw(st.sampled_from("abc")), str(number), *sorted(needs)))
    bad = draw(st.sets(st.sampled_from([one.key for one in steps])))
    return Plan(tuple(draw(st.permutations(steps)))), frozenset(bad)


@given(plans())
@settings(deadline=None, max_examples=60)
def test_every_step_ends_once_and_never_before_what_it_needs(
    planned: tuple[Plan, frozenset[str]],
) -> None:
    plan, bad = planned
    ended: list[str] = []

    def watch(event: Event) -> None:
        match event:
            case Started(one):
                assert set(one.needs) <= set(ended)
            case Finished(outcome):
                ended.append(outcome.step.key)
            case Waiting():
                pytest.fail("nothing waits here")

    rules = [
        on(one.subject, host=one.host, exit_code=1 if one.key in bad else 0) for one in plan.steps
    ]
    outcomes = {
        one.step.key: one for one in execute(plan, FakeFleet(*rules, hosts=("a", "b", "c")), watch)
    }
    assert sorted(ended) == sorted(one.key for one in plan)
    for one in plan:
        broken = [need for need in one.needs if outcomes[need].outcome is not Outcome.DONE]
        expected = Outcome.SKIPPED if broken else Outcome.FAILED if one.key in bad else Outcome.DONE
        assert outcomes[one.key].outcome is expected
