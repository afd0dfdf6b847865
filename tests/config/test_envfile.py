"""config.env as people write it, and as nobody should."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmdeploy.config import envfile
from vllmdeploy.config.envfile import Entry
from vllmdeploy.config.values import VALUE_LIMIT, fault

HOSTILE = st.one_of(
    st.text(max_size=80),
    st.text(alphabet="ab ='\"\\#$`;|&<>(){}\t\r\n\0,:[]@-.%!~*?", max_size=60),
)


def read(text: str) -> list[tuple[int, str, str]]:
    found = envfile.parse(text, name="config.env")
    assert found.problems == ()
    return [(entry.line, entry.key, entry.value) for entry in found.entries]


def problem(text: str) -> str:
    found = envfile.parse(text, name="config.env")
    assert found.entries == ()
    (only,) = found.problems
    return only


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("K=v", "v"),
        ("K = v ", "v"),
        ("  export K=v", "v"),
        ("export\tK=v", "v"),
        ("K=", ""),
        ("K= # nothing", ""),
        ("K=#v", "#v"),
        ("K=a#b", "a#b"),
        ("K=a #b", "a"),
        ("K=a\t# b", "a"),
        ("K='a #b'", "a #b"),
        ("K=' a '  # c", " a "),
        ('K="a b"', "a b"),
        ('K="say \\"it\'s\\" \\\\ \\n"', 'say "it\'s" \\ \\n'),
        ('K=it\'s "both"', 'it\'s "both"'),
        ("K=$HOME/`id`$(id)", "$HOME/`id`$(id)"),
        ("K=a=b=c", "a=b=c"),
        ("K=''", ""),
        ("K=模型", "模型"),
    ],
)
def test_a_value_is_taken_as_written(line: str, value: str) -> None:
    assert read(line) == [(1, "K", value)]


def test_a_file_from_windows_with_a_byte_order_mark_reads_the_same() -> None:
    assert read("\ufeff# top\r\n\r\nA=1\r\nB='2'\r\n") == [(3, "A", "1"), (4, "B", "2")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("API_PORT", "config.env:1: 'API_PORT' is not KEY=VALUE"),
        ("=v", "config.env:1: '' is not a key: letters, digits and _ only"),
        ("1A=v", "config.env:1: '1A' is not a key: letters, digits and _ only"),
        ("A-B=v", "config.env:1: 'A-B' is not a key: letters, digits and _ only"),
        ("K='a", "config.env:1: K: the opening ' has no closing one in this line"),
        ('K="a\\"', 'config.env:1: K: the opening " has no closing one in this line'),
        (
            "K='it's'",
            "config.env:1: K: text after the closing quote; a value with both kinds of quotes "
            'is written in double quotes, with \\" for each of those inside',
        ),
        ("K=a\x1bb", "config.env:1: K: holds the control or invisible character U+001B"),
        ("K=a\0b", "config.env:1: K: holds the control or invisible character U+0000"),
        ("K=a\tb", "config.env:1: K: holds the control or invisible character U+0009"),
        ("K=a\rb", "config.env:1: K: holds the control or invisible character U+000D"),
        ("K=a\u2028b", "config.env:1: K: holds the control or invisible character U+2028"),
        ("K=a\u202eb", "config.env:1: K: holds the control or invisible character U+202E"),
        (
            "K=" + "x" * 1_000_000,
            "config.env:1: K: 1,000,000 characters are too many: at most 32,768",
        ),
    ],
)
def test_a_line_that_means_nothing_is_refused(line: str, said: str) -> None:
    assert problem(line) == said


def test_a_key_set_twice_names_both_lines() -> None:
    found = envfile.parse("A=1\nB=2\nA=3\n", name="f")
    assert found.entries == (Entry("A", "1", 1), Entry("B", "2", 2))
    assert found.problems == ("f:3: A: already set in line 1",)


def test_all_problems_come_at_once() -> None:
    assert envfile.parse("A\nB='\nC=1\n?=2", name="f").problems == (
        "f:1: 'A' is not KEY=VALUE",
        "f:2: B: the opening ' has no closing one in this line",
        "f:4: '?' is not a key: letters, digits and _ only",
    )


def test_bytes_that_are_not_text_are_refused_in_their_line(tmp_path: Path) -> None:
    path = tmp_path / "config.env"
    path.write_bytes(b"A=1\nB=\xff\xfe\n")
    found = envfile.parse(envfile.read_text(path), name="f")
    assert found.problems == ("f:2: B: not UTF-8 text",)


def test_a_file_too_large_for_settings_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.env"
    path.write_bytes(b"#" * (envfile.FILE_LIMIT + 1))
    with pytest.raises(
        ValueError, match="larger than 1,048,576 bytes: this is not a settings file"
    ):
        envfile.read_text(path)


def test_a_long_line_of_blanks_costs_no_time() -> None:
    blanks = " " * envfile.FILE_LIMIT
    assert problem(f"A{blanks}B") == f"config.env:1: 'A{' ' * 29}...' is not KEY=VALUE"


@settings(max_examples=2500, deadline=None)
@given(HOSTILE)
def test_any_value_survives_quoting_or_is_unfit(value: str) -> None:
    found = envfile.parse(f"BEFORE=1\nK={envfile.quote(value)}", name="f")
    if fault(value) is None:
        assert found == envfile.EnvFile((Entry("BEFORE", "1", 1), Entry("K", value, 2)))
    else:
        assert found.problems
        assert all(said.startswith("f:") for said in found.problems)


@settings(max_examples=2500, deadline=None)
@given(HOSTILE)
def test_any_text_is_taken_literally_or_refused_with_its_line(text: str) -> None:
    found = envfile.parse(f"K={text}", name="f")
    for entry in found.entries:
        assert fault(entry.value) is None
        assert len(entry.value) <= VALUE_LIMIT
        # Only a backslash before a quote or a backslash may go, and only inside double quotes.
        assert entry.value.replace("\\", "") in text.replace("\\", "")
    for said in found.problems:
        where, line, _ = said.split(":", 2)
        assert where == "f"
        assert 1 <= int(line) <= text.count("\n") + 1
