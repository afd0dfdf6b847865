"""Login shells of all kinds, loud ones too, and 10,000 hostile values through a real sshd."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sshd import Sshd, answering, login_user, require_sshd, sshd
from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.effects.connect import connect
from vllmdeploy.effects.shell import Shell

_NOISE = "echo 'Welcome! vd-0:1: [ERROR] 100%'\n"
_NOISE_ON_STDERR = "echo 'stty: standard input: no tty' >&2\n"
# Where each shell looks even when it only runs one command.
_RC_FILES = {
    "bash": (".bashrc", _NOISE + _NOISE_ON_STDERR),
    "zsh": (".zshenv", _NOISE + _NOISE_ON_STDERR),
    "tcsh": (".tcshrc", _NOISE),
    "fish": (".config/fish/config.fish", _NOISE + _NOISE_ON_STDERR),
    "sh": (".profile", _NOISE),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    require_sshd()
    banner = tmp_path_factory.mktemp("banner") / "banner"
    banner.write_text("AUTHORIZED USE ONLY\nvd-1:2:\n" * 30, "utf-8")
    with sshd(tmp_path_factory.mktemp("sshd"), f"Banner {banner}", "PrintMotd yes") as running:
        yield running


@pytest.fixture(scope="module", params=sorted(_RC_FILES))
def shell(request: pytest.FixtureRequest, server: Sshd) -> Iterator[Shell]:
    name = str(request.param)
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    with tempfile.TemporaryDirectory(prefix="vllmdeploy-test-") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder) / "home"
        with login_user(f"vd{name}{os.getpid()}", path, home, password="x") as user:
            file, text = _RC_FILES[name]
            (home / file).parent.mkdir(parents=True, exist_ok=True)
            (home / file).write_text(text, "utf-8")
            settings = server.settings(key=None, ask=answering("x"))
            with connect([server.host(user=user)], settings) as connected:
                assert connected.failures == {}
                yield connected.shells["a"]


def test_noise_around_a_command_is_never_part_of_its_answer(shell: Shell) -> None:
    lines: list[str] = []
    result = shell.run(script("echo out; echo err >&2; exit 3"), on_line=lines.append)
    assert result == Result(3, "out\n", "err\n")
    assert sorted(lines) == ["err", "out"]


def test_words_and_stdin_arrive_as_they_are(shell: Shell) -> None:
    words = (
        "a b",
        "",
        "$HOME",
        "`id`",
        "'",
        '"',
        "\\",
        "!!",
        "~",
        "é",
        "a\nb",
        "*",
        "{a,b}",
        "^a^b",
    )
    assert shell.run(Command(("printf", "[%s]", *words))).stdout == "".join(
        f"[{word}]" for word in words
    )
    assert shell.run(Command(("cat",), stdin=b"a\n\\n$HOME\n")).stdout == "a\n\\n$HOME\n"


def test_a_big_command_passes_and_a_late_one_is_ended(shell: Shell) -> None:
    assert shell.run(script('printf %s "$1" | wc -c', "'" * 60_000)).stdout.strip() == "60000"
    assert shell.run(Command(("sleep", "30")).within(1.0)).timed_out


_SEED = 20_261_121
_PIECES = (
    *("$(touch {0})", "`touch {0}`", ";touch {0};", "|touch {0}", "&touch {0}&", "\ntouch {0}\n"),
    *("'", '"', "\\", "!", "!!", "$", "${{HOME}}", "$IFS", "~", "*", "?", "[a]", "{{a,b}}", "#"),
    *("(", ")", "<", ">{0}", "&&", "||", "-", "--", "-rf", "%s", "%n", "=", " ", "\t", "\r"),
    *("\x01", "\x02", "\x1b[31m", "\x7f", "\x80", "é", "😀", "\u2028", "\udcff", "\udc80", "a"),
    *("\\0", "\\n", "\\c", "^a^b", "'\"'\"'", '"$n"', "'\"$n\"'", "$n", "EOF", "\n", "\n\n", ""),
)


def hostile(chance: random.Random, trap: Path) -> str:
    pieces = chance.choices(_PIECES, k=chance.randint(0, 12))
    return "".join(piece.format(trap) for piece in pieces)


def test_ten_thousand_hostile_values_arrive_literally_and_none_is_run(
    server: Sshd, open_folder: Path
) -> None:
    chance, trap = random.Random(_SEED), open_folder / "trap"
    open_folder.chmod(0o777)
    values = [hostile(chance, trap) for _ in range(10_000)]
    echo = "import json, sys; print(json.dumps(sys.argv[1:]))"
    with connect([server.host()], server.settings()) as connected:
        shell = connected.shells["a"]
        for begin in range(0, len(values), 500):
            batch = values[begin : begin + 500]
            result = shell.run(Command((sys.executable, "-I", "-X", "utf8", "-c", echo, *batch)))
            assert result.status == 0, result.stderr
            assert json.loads(result.stdout) == batch
    assert not trap.exists()
