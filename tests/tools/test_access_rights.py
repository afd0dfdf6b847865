"""What our user may do, and what follows: where sudo goes, where state lives."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools.access import Access, Rights, Sudo, decide, rights

SYSTEM, HOME = "/var/lib/vllmdeploy/c", "/home/u/.local/state/vllmdeploy/c"


def user(*, docker: bool = False, state: bool = False, sudo: bool = False) -> Rights:
    return Rights(
        uid=1000, user="u", home="/home/u", docker_socket=docker, state_writable=state, sudo=sudo
    )


ROOT = Rights(uid=0, user="root", home="/root", docker_socket=True, state_writable=True, sudo=False)


@pytest.mark.parametrize(
    ("sudo", "found", "root", "sudo_docker", "sudo_files"),
    [
        ("auto", ROOT, SYSTEM, False, False),
        ("always", ROOT, SYSTEM, False, False),
        ("auto", user(docker=True), HOME, False, False),
        ("auto", user(docker=True, state=True), SYSTEM, False, False),
        ("auto", user(sudo=True), SYSTEM, True, True),
        ("auto", user(docker=True, sudo=True), SYSTEM, False, True),
        ("auto", user(state=True, sudo=True), SYSTEM, True, False),
        ("auto", user(), HOME, False, False),
        ("never", user(sudo=True), HOME, False, False),
        ("always", user(docker=True, state=True), SYSTEM, True, True),
    ],
)
def test_sudo_is_used_where_it_must_be(
    sudo: Sudo, found: Rights, root: str, sudo_docker: bool, sudo_files: bool
) -> None:
    way = decide("c", sudo, found)
    assert (way.layout.root, way.sudo_docker, way.sudo_files) == (root, sudo_docker, sudo_files)


DOCKER = Command(("docker", "ps"), root=True)
DOCKER_SCRIPT = script("docker ps", root=True)
FILE = Command(("rm", "-f", "x"), root=True)
PLAIN = Command(("ip", "addr"))


@pytest.mark.parametrize(
    ("found", "elevated"),
    [
        (user(docker=True, sudo=True), [FILE]),
        (user(state=True, sudo=True), [DOCKER, DOCKER_SCRIPT]),
        (user(sudo=True), [DOCKER, DOCKER_SCRIPT, FILE]),
        (ROOT, []),
    ],
)
def test_docker_and_files_are_elevated_each_by_its_own_need(
    found: Rights, elevated: list[Command]
) -> None:
    way = decide("c", "auto", found)
    for command in (DOCKER, DOCKER_SCRIPT, FILE, PLAIN):
        done = way.of(command)
        assert (done.argv[0] == "sudo") == (command in elevated)
        assert not done.root


def test_answers_of_images_are_kept_where_the_docker_user_may_write() -> None:
    by_group = decide("c", "auto", user(docker=True, sudo=True))
    assert by_group.probes == f"{HOME}/cache/probes"
    for found in (user(sudo=True), user(docker=True), ROOT):
        way = decide("c", "auto", found)
        assert way.probes == way.layout.probes


def test_this_machine_answers() -> None:
    fact = rights("c", "never")
    found = fact.parse(LocalShell("here").run(fact.command))
    assert (found.uid, found.home) == (os.getuid(), os.environ["HOME"])
    assert found.sudo is False


def test_a_home_is_found_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    fact = rights("c", "never")
    assert Path(fact.parse(LocalShell("here").run(fact.command)).home).is_absolute()


def test_sudo_is_tried_and_its_words_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = {
        "id": '[ "$1" = -u ] && echo 1000 || echo u',
        "sudo": "echo 'sudo: a password is required' >&2; exit 1",
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", "utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    fact = rights("c", "auto")
    found = fact.parse(LocalShell("here").run(fact.command))
    assert (found.uid, found.user, found.sudo) == (1000, "u", False)
    assert found.sudo_says == "sudo: a password is required"
    (tmp_path / "sudo").write_text("#!/bin/sh\nexit 0\n", "utf-8")
    assert fact.parse(LocalShell("here").run(fact.command)).sudo


def test_a_host_that_does_not_say_who_we_are_is_not_taken_for_anybody() -> None:
    found = rights("c", "auto").parse(Result(124, timed_out=True))
    assert found.uid is None
    assert decide("c", "auto", found).uid == -1


def test_an_access_of_old_is_complete_without_a_home() -> None:
    way = decide("c", "never", ROOT)
    assert Access(way.layout, "root", 0, False, False).probes == f"{SYSTEM}/cache/probes"


@given(st.text())
def test_no_text_ends_the_reading(text: str) -> None:
    for said in (text, f"uid={text}\nhome={text}"):
        rights("c", "auto").parse(Result(0, said))
