"""How a command survives any login shell, its noise, and sudo."""

from __future__ import annotations

import itertools
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmdeploy.core.command import Command, script
from vllmdeploy.effects.wrap import BOOTSTRAP, Between, program, with_sudo_password
from vllmdeploy.errors import UsageError

MARK = b"vd-mark"
HOSTILE = (
    "a b",
    "",
    "$HOME",
    "`id`",
    "$(id)",
    "'",
    '"',
    "\\",
    "!x",
    "a\nb\n",
    "\x01\x7f",
    "\udcff",
)


def test_the_bootstrap_has_nothing_that_a_login_shell_could_read_in_its_own_way() -> None:
    assert not set(BOOTSTRAP) & set("\\!`\n\t*?[]{}~#%")
    assert BOOTSTRAP.count("'") == 2


@pytest.mark.parametrize(
    "login",
    [("sh",), ("bash",), ("dash",), ("zsh",), ("fish",), ("tcsh",), ("busybox", "sh")],
    ids=" ".join,
)
def test_every_login_shell_passes_the_program_on(login: tuple[str, ...]) -> None:
    if shutil.which(login[0]) is None:
        pytest.skip(f"{login[0]} is not installed")
    command = Command(("printf", "<%s>", *HOSTILE))
    ended = subprocess.run(
        (*login, "-c", BOOTSTRAP), input=program(command, MARK), capture_output=True, check=False
    )
    stream = Between(MARK)
    expected = "".join(f"<{word}>" for word in HOSTILE).encode("utf-8", "surrogateescape")
    assert stream.feed(ended.stdout) == expected
    assert (stream.status, ended.returncode) == (0, 0)


@pytest.mark.parametrize("shell", [("dash",), ("bash", "--posix"), ("busybox", "sh")], ids=" ".join)
@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), max_size=8))
def test_any_words_pass_through_any_posix_shell(shell: tuple[str, ...], words: list[str]) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"{shell[0]} is not installed")
    text = 'IFS= read -r program && eval "$program"'
    ended = subprocess.run(
        (*shell, "-c", text),
        input=program(Command(("printf", "<%s>", *words)), MARK) + b"not for printf",
        capture_output=True,
        check=False,
    )
    expected = "".join(f"<{word}>" for word in words or [""]).encode()
    assert Between(MARK).feed(ended.stdout) == expected


@given(noise=st.binary(max_size=40), own=st.binary(max_size=60), cuts=st.lists(st.integers(0, 140)))
def test_noise_is_stripped_however_the_bytes_are_cut(
    noise: bytes, own: bytes, cuts: list[int]
) -> None:
    stream, said = Between(MARK), b""
    whole = noise + b"vd-mark:77:" + own + b"vd-mark:143:" + b"rest of a child left behind"
    edges = [0, *sorted(cuts), len(whole)]
    for begin, end in itertools.pairwise(edges):
        said += stream.feed(whole[begin:end])
    assert (said, stream.pid, stream.status, stream.noise) == (own, 77, 143, noise)


def test_output_is_passed_on_before_the_end_is_seen() -> None:
    stream = Between(MARK)
    assert stream.feed(b"motd\nvd-mark:7:line\nv") == b"line\n"
    assert stream.feed(b"d-more") == b"vd-more"
    assert stream.status is None


def test_the_limit_is_kept_on_the_host_too_and_behind_sudo() -> None:
    text = program(Command(("sudo", "-n", "--", "docker", "ps"), limit_s=0.5), MARK).decode()
    assert "; set -- docker ps; " in text
    assert "timeout -k 5 1 true </dev/null >/dev/null 2>&1 && sudo -n -l timeout" in text
    assert '; set -- sudo -n -- "$@"; ' in text
    assert "timeout" not in program(Command(("tail",), limit_s=float("inf")), MARK).decode()


def test_a_sudo_password_is_the_first_line_of_stdin_and_never_in_argv() -> None:
    plain = script("cat", stdin=b"data")
    assert with_sudo_password(plain, "pass word") is plain
    assert with_sudo_password(plain.elevated(), None) == plain.elevated()
    command = with_sudo_password(plain.elevated(), "pass word")
    assert command.argv[:7] == ("sudo", "-S", "-p", "", "--", "sh", "-c")
    assert command.argv[-4:] == plain.argv
    assert "pass word" not in str(command) + repr(command)
    mark = command.argv[9]
    assert command.stdin == f"pass word\n{mark}\ndata".encode()


@pytest.mark.parametrize("unread", ["", "the password\n"])
def test_the_command_behind_sudo_gets_its_own_stdin_whether_or_not_sudo_read_the_password(
    unread: str,
) -> None:
    command = with_sudo_password(Command(("cat",), stdin=b"a\nb").elevated(), "the password")
    given = unread.encode() + (command.stdin or b"").removeprefix(b"the password\n")
    after_sudo = command.argv[command.argv.index("--") + 1 :]
    assert (
        subprocess.run(after_sudo, input=given, capture_output=True, check=True).stdout == b"a\nb"
    )


def test_text_that_no_exec_can_carry_is_refused() -> None:
    with pytest.raises(UsageError, match="NUL"):
        program(Command(("printf", "\0")), MARK)
    with pytest.raises(UsageError, match="cannot carry"):
        program(Command(("printf", "\ud800")), MARK)
