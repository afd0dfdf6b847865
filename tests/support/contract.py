"""What every shell on a real host must do; the local one and SSH run the same sentences."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.effects.shell import Shell
from vllmdeploy.errors import UsageError


class ShellContract:
    """Subclasses give the `shell` fixture."""

    def test_status_and_both_streams_arrive_apart(self, shell: Shell) -> None:
        result = shell.run(script("echo out; echo err >&2; exit 7"))
        assert result == Result(7, "out\n", "err\n")

    @pytest.mark.parametrize("status", [0, 1, 2, 100, 124, 125, 126, 127, 137, 255])
    def test_every_status_is_exact(self, shell: Shell, status: int) -> None:
        assert shell.run(script("exit $1", str(status))) == Result(status)

    @pytest.mark.parametrize(("signal", "status"), [("TERM", 143), ("KILL", 137), ("SEGV", 139)])
    def test_a_signal_is_a_status_of_128_and_its_number(
        self, shell: Shell, signal: str, status: int
    ) -> None:
        result = shell.run(script("kill -s $1 $$", signal))
        assert (result.status, result.timed_out) == (status, False)

    def test_a_missing_program_is_127_and_one_that_is_no_program_126(self, shell: Shell) -> None:
        assert shell.run(Command(("vllmdeploy-no-such-program", "x"))).status == 127
        assert shell.run(Command(("/etc/passwd",))).status == 126

    def test_the_first_word_is_a_program_never_a_word_of_the_shell(self, shell: Shell) -> None:
        assert shell.run(Command(("exit", "3"))).status == 127
        assert shell.run(Command(("eval", "exit 3"))).status == 127

    def test_words_arrive_as_they_are(self, shell: Shell) -> None:
        words = (
            *("a b", "", "$HOME", "`id`", "$(id)", "'", '"', "\\", "!", "*", "~", "é😀", "-n"),
            *("\n", "a\nb\n", "'\n'", '"\n$n"', "\t\r", "\x01\x7f\x1b[0m", "{a,b}", "#", "%s"),
        )
        printed = shell.run(Command(("printf", "[%s]", *words))).stdout
        assert printed == "".join(f"[{word}]" for word in words)

    def test_without_stdin_a_reader_ends_at_once(self, shell: Shell) -> None:
        assert shell.run(Command(("cat",), limit_s=20)) == Result(0)

    def test_stdin_arrives_byte_for_byte_and_ends(self, shell: Shell) -> None:
        data = bytes(range(256)) * 8192
        result = shell.run(Command(("sha256sum",), stdin=data))
        assert result.stdout.split()[0] == hashlib.sha256(data).hexdigest()

    def test_a_command_that_does_not_want_its_stdin_is_not_waited_for(self, shell: Shell) -> None:
        assert shell.run(Command(("true",), stdin=b"x" * 4_000_000)) == Result(0)

    def test_stdin_and_output_flow_at_the_same_time(self, shell: Shell) -> None:
        data = b"0123456789abcde\n" * 200_000
        assert shell.run(Command(("cat",), stdin=data)).stdout.encode() == data

    def test_what_is_not_utf8_is_replaced(self, shell: Shell) -> None:
        assert shell.run(script(r"printf 'a\377b\n'")).stdout == "a\N{REPLACEMENT CHARACTER}b\n"

    def test_lines_stream_in_order_and_without_their_ends(self, shell: Shell) -> None:
        lines: list[str] = []
        result = shell.run(script(r"printf 'a\nb\r\nc\rd\n\ne'"), on_line=lines.append)
        assert lines == ["a", "b", "c", "d", "", "e"]
        assert result.stdout == "a\nb\r\nc\rd\n\ne"

    def test_a_line_is_passed_on_while_the_command_still_runs(self, shell: Shell) -> None:
        seen_at: list[float] = []
        shell.run(script("echo first; sleep 1"), on_line=lambda _: seen_at.append(time.monotonic()))
        assert time.monotonic() - seen_at[0] > 0.5

    def test_big_output_is_cut_in_the_middle_and_says_so(self, shell: Shell) -> None:
        count = 20 * 1024 * 1024
        text = shell.run(script("echo begin; head -c $1 /dev/zero; echo end", str(count))).stdout
        assert text.startswith("begin\n")
        assert text.endswith("end\n")
        assert len(text) < 8 * 1024 * 1024 + 100
        assert f"\n[... {count + 10 - 8 * 1024 * 1024} bytes left out ...]\n" in text

    def test_output_without_a_line_end_is_neither_added_to_nor_cut(self, shell: Shell) -> None:
        assert shell.run(Command(("printf", "x"))).stdout == "x"
        assert shell.run(Command(("printf", "\n"))).stdout == "\n"

    def test_past_its_limit_the_command_and_its_children_are_ended(self, shell: Shell) -> None:
        text = "sleep 4371 & echo $! $$; wait"
        began = time.monotonic()
        result = shell.run(script(text).within(1.0))
        assert result.timed_out
        assert time.monotonic() - began < 15
        for pid in result.stdout.split():
            state = shell.run(script('cat "/proc/$1/stat" 2>/dev/null', pid)).stdout
            assert state == "" or state.rsplit(")", 1)[1].split()[0] == "Z"

    def test_a_command_that_ignores_term_is_killed(self, shell: Shell) -> None:
        result = shell.run(script("trap '' TERM; echo on; while :; do sleep 1; done").within(3.0))
        assert (result.timed_out, result.stdout) == (True, "on\n")

    def test_a_command_that_ends_by_124_in_time_has_not_timed_out(self, shell: Shell) -> None:
        assert not shell.run(script("exit 124").within(30)).timed_out

    def test_a_command_without_a_limit_has_an_exact_status_too(self, shell: Shell) -> None:
        assert shell.run(script("kill -s KILL $$").within(float("inf"))).status == 137
        assert shell.run(Command(("echo", "a"), limit_s=float("inf"))) == Result(0, "a\n")

    def test_a_child_left_behind_with_the_streams_open_is_not_waited_for(
        self, shell: Shell
    ) -> None:
        began = time.monotonic()
        result = shell.run(script("sleep 20 & echo $!"))
        assert time.monotonic() - began < 10
        assert result.ok
        shell.run(Command(("kill", result.stdout.strip())))

    def test_eight_commands_run_at_once_and_keep_their_answers_apart(self, shell: Shell) -> None:
        def ask(number: int) -> str:
            return shell.run(script('sleep 0.$(($1 % 3)); echo "$1"', str(number))).stdout

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(40))) == [f"{number}\n" for number in range(40)]

    def test_a_hundred_kibibytes_of_arguments_work(self, shell: Shell) -> None:
        words = ("x" * 50_000, "'\n$" * 17_000)
        result = shell.run(script('printf %s "$1$2" | wc -c', *words))
        assert result.stdout.strip() == str(50_000 + 51_000)

    def test_two_megabytes_of_arguments_are_a_failed_command(self, shell: Shell) -> None:
        assert shell.run(Command(("true", "x" * 2_000_000))).status == 126

    def test_a_nul_byte_is_refused_before_anything_runs(self, shell: Shell) -> None:
        with pytest.raises(UsageError, match="NUL"):
            shell.run(Command(("printf", "a\0b")))

    def test_an_error_while_a_line_is_handled_ends_the_command(self, shell: Shell) -> None:
        def fail(line: str) -> None:
            raise RuntimeError(line)

        with pytest.raises(RuntimeError, match="now"):
            shell.run(script("echo now; sleep 20"), on_line=fail)
        assert shell.run(Command(("true",))).ok
