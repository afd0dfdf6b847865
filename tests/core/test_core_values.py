"""Commands, plans, fleets and layouts as values."""

from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Command, Result, check, script
from vllmdeploy.core.host import Fleet, Host
from vllmdeploy.core.layout import Layout
from vllmdeploy.core.plan import Draft, Plan, Run, Step, Wait
from vllmdeploy.core.spec import NodeSpec, fingerprint
from vllmdeploy.errors import CommandFailed, CommandTimedOut


@given(st.lists(st.text(), min_size=1))
def test_what_is_shown_of_a_command_can_be_pasted_into_a_shell(argv: list[str]) -> None:
    assert shlex.split(str(Command(tuple(argv)))) == argv


def test_stdin_is_never_shown() -> None:
    command = Command(("cat",), stdin=b"secret")
    assert "secret" not in str(command) + repr(command)


def test_an_elevated_command_keeps_what_it_carries() -> None:
    command = Command(("id",), stdin=b"x", limit_s=7, root=True).elevated()
    assert command == Command(("sudo", "-n", "--", "id"), stdin=b"x", limit_s=7)
    assert command.within(3).limit_s == 3


def test_what_varies_in_a_script_arrives_as_an_argument() -> None:
    assert str(script('echo "$1"', "$(id)")) == "sh -c 'echo \"$1\"' sh '$(id)'"


@pytest.mark.parametrize(
    ("result", "error", "text"),
    [
        (
            Result(125, "out\n", "docker: no space left\n\n"),
            CommandFailed,
            "a: create x: exit 125: docker run\n  docker: no space left\n  -> look",
        ),
        (Result(1), CommandFailed, "a: create x: exit 1: docker run\n  (no output)\n  -> look"),
        (
            Result(124, "half", timed_out=True),
            CommandTimedOut,
            "a: create x: no answer within 60 s: docker run\n  half\n  -> look",
        ),
    ],
)
def test_a_failed_result_becomes_an_error_that_says_where_and_what(
    result: Result, error: type[CommandFailed], text: str
) -> None:
    with pytest.raises(error) as caught:
        check("a", Command(("docker", "run")), result, doing="create x", hint="look")
    assert str(caught.value) == text
    assert caught.value.exit_code == 4
    assert caught.value.host == "a"


def test_a_good_result_is_handed_on() -> None:
    result = Result(0, "yes")
    assert check("a", Command(("true",)), result) is result
    assert (result.ok, Result(0, timed_out=True).ok) == (True, False)
    assert Result(1, "out", "err").output == "out\nerr"


def step(subject: str, *needs: str, destructive: bool = False) -> Step:
    return Step("a", "do", subject, "asked", Run(Command(("x",))), needs, destructive)


def test_a_draft_takes_a_step_once_and_after_what_it_needs() -> None:
    draft = Draft()
    first = draft.add(step("1"))
    draft.add(step("2", first))
    draft.note("n")
    draft.note("n")
    plan = draft.finished()
    assert [one.key for one in plan] == ["a: do 1", "a: do 2"]
    assert (len(plan), plan.notes, plan.destructive) == (2, ("n",), False)
    with pytest.raises(ValueError, match="planned twice: a: do 1"):
        draft.add(step("1"))
    with pytest.raises(ValueError, match=r"a: do 3 needs what is not planned before it: \['b'\]"):
        draft.add(step("3", "b"))


def test_a_plan_is_destructive_when_one_step_is() -> None:
    assert Plan((step("1"), step("2", destructive=True))).destructive


def test_a_step_shows_the_command_of_its_action() -> None:
    wait = Wait(Command(("ask",)), lambda result: None, limit_s=1)
    assert Step("a", "await", "x", "why", wait).command == Command(("ask",))


def test_groups_have_their_head_first() -> None:
    hosts = tuple(
        Host(name=name, address=name, group=group, head=head)
        for name, group, head in (
            ("a", "default", True),
            ("b", "default", False),
            ("c", "hygon", False),
            ("d", "hygon", True),
        )
    )
    fleet = Fleet(hosts)
    assert fleet.head.name == "a"
    assert fleet.groups == ("default", "hygon")
    assert [host.name for host in fleet.group("hygon")] == ["d", "c"]
    assert fleet.named("c").group == "hygon"


def test_everything_of_a_cluster_is_below_one_folder() -> None:
    layout = Layout("/r")
    assert (
        layout.lock,
        layout.audit,
        layout.ray_token,
        layout.services,
        layout.package("abc"),
        layout.run("n"),
        layout.logs("n"),
        layout.cache("i", "c"),
        layout.probes,
    ) == (
        "/r/lock",
        "/r/audit.log",
        "/r/secrets/ray/ray_token",
        "/r/services",
        "/r/pkg/abc",
        "/r/run/n",
        "/r/logs/n",
        "/r/cache/i-c",
        "/r/cache/probes",
    )


def test_a_fingerprint_changes_with_any_part_and_not_with_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": (2,)}) == fingerprint({"b": (2,), "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint("é")) == 12


def test_labels_say_what_a_later_run_has_to_know() -> None:
    node = NodeSpec(
        name="n",
        cluster="c",
        group="g",
        role="ray-head",
        host="a",
        ip="10.0.0.1",
        command=(),
        service="s",
        cards=(0, 3),
        package="p",
        generation=4,
    )
    assert node.labels("f") == {
        "vllmdeploy.cluster": "c",
        "vllmdeploy.group": "g",
        "vllmdeploy.role": "ray-head",
        "vllmdeploy.generation": "4",
        "vllmdeploy.fingerprint": "f",
        "vllmdeploy.cards": "0,3",
        "vllmdeploy.package": "p",
        "vllmdeploy.service": "s",
    }


@pytest.mark.parametrize(
    ("every_s", "waited_s", "pause_s"),
    [
        (1.0, 0.0, 0.25),
        (1.0, 5.0, 0.5),
        (1.0, 10.0, 1.0),
        (1.0, 600.0, 2.0),
        (0.2, 0.0, 0.2),
        (0.2, 600.0, 0.4),
    ],
)
def test_what_takes_long_is_asked_for_less_often(
    every_s: float, waited_s: float, pause_s: float
) -> None:
    waiting = Wait(Command(("ask",)), lambda _: None, 900, every_s)
    assert waiting.pause_s(waited_s) == pytest.approx(pause_s)
    # One that was answered at once although it might have been held is left alone as any other.
    assert waiting.pause_s(waited_s, held_s=0.01) == pytest.approx(pause_s)
    assert waiting.pause_s(waited_s, held_s=3.0) == pytest.approx(min(every_s, 0.25))
