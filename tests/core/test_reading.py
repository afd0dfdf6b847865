"""Numbers and JSON out of text that anybody may have written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.reading import (
    count,
    fields,
    json_line,
    json_object,
    number,
    strings,
    whole,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("-7", -7),
        ("65535", 65535),
        ("²", None),
        ("٣", None),
        ("--5", None),
        ("+5", None),
        (" 5", None),
        ("5\n", None),
        ("", None),
        ("1" * 5000, None),
    ],
)
def test_a_whole_number_is_ascii_digits_and_nothing_else(text: str, value: int | None) -> None:
    assert whole(text) == value


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3.0),
        (2.5, 2.5),
        (True, None),
        ("3", None),
        (None, None),
        (float("inf"), None),
        (float("nan"), None),
        (10**400, None),
        ([], None),
    ],
)
def test_a_json_number_is_finite(value: object, expected: float | None) -> None:
    assert number(value) == expected
    assert count(value) == int(expected or 0)


def test_objects_are_read_and_nothing_else_is() -> None:
    assert json_object('{"a": 1}') == {"a": 1}
    for text in ("[1]", "1", '"a"', "", "{", "[" * 100_000, '{"a":' * 100_000):
        assert json_object(text) is None
    assert fields([1]) == {}
    assert strings({"a": "x", "b": 1, "c": None}) == {"a": "x"}


def test_the_last_object_counts_whatever_was_printed_before_it() -> None:
    said = 'Emulate something\n{"warning": 1}\n{not json\n{"a": "x\\u0085y"}\ntrailer\n'
    assert json_line(said) == {"a": "x\u0085y"}
    assert json_line('{"a": "x\u0085y\u2028z"}') == {"a": "x\u0085y\u2028z"}
    assert json_line("no object\n") is None


@given(st.text())
def test_no_text_is_too_odd(text: str) -> None:
    whole(text)
    json_line(text)
    json_line("{" + text)
