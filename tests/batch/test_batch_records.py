"""Input lines become rows, or say with their number why they cannot."""

from __future__ import annotations

import hashlib
import io
import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.batch.compact import DoneSet, SeenIds
from vllmdeploy.batch.lines import Line, open_input, read_lines, survey
from vllmdeploy.batch.prefix import grouped
from vllmdeploy.batch.records import BadRow, Fields, Row, Shape, note_custom_id, parse_line
from vllmdeploy.errors import UsageError

LIMIT = 1000


def parsed(data: bytes, shape: Shape | None = None) -> list[Row | BadRow]:
    seen = SeenIds()
    return [
        parse_line(line, shape or Shape(), seen) for line in read_lines(io.BytesIO(data), LIMIT)
    ]


def told(data: bytes, shape: Shape | None = None) -> list[str]:
    """One word of each line: the request of a row, the reason of a bad one."""
    return [
        f"{item.line} {item.path} {item.payload.decode()}"
        if isinstance(item, Row)
        else f"{item.line} {item.kind}: {item.reason}"
        for item in parsed(data, shape)
    ]


OPENAI = (
    b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions",'
    b'"body":{"model":"m","messages":[{"role":"user","content":"hi"}]}}'
)


def test_openai_rows_are_sent_as_they_are() -> None:
    assert told(OPENAI) == [
        '1 /v1/chat/completions {"model":"m","messages":[{"role":"user","content":"hi"}]}'
    ]


def test_simple_rows_become_requests_with_their_sampling_fields_only() -> None:
    rows = (
        b'{"prompt":"Hello, I am a","temperature":0,"label":"mine"}\n'
        b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":5}\n'
    )
    assert told(rows, Shape(model="m")) == [
        '1 /v1/completions {"prompt":"Hello, I am a","temperature":0,"model":"m","max_tokens":256}',
        '2 /v1/chat/completions {"messages":[{"role":"user","content":"hi"}],"max_tokens":5,'
        '"model":"m"}',
    ]


def test_a_model_or_limit_of_the_row_itself_wins() -> None:
    assert told(b'{"prompt":"x","model":"own","max_tokens":7}', Shape("m", max_tokens=9)) == [
        '1 /v1/completions {"prompt":"x","model":"own","max_tokens":7}'
    ]


def test_a_read_hook_makes_a_prompt_messages_or_a_body() -> None:
    def read(fields: Fields) -> str | list[object] | Fields:
        kind = fields["kind"]
        if kind == "prompt":
            return f"Say {fields['word']}"
        if kind == "messages":
            return [{"role": "system", "content": "x"}]
        return {"prompt": "raw", "n": 2}

    rows = b'{"kind":"prompt","word":"yes"}\n{"kind":"messages"}\n{"kind":"body"}\n{"no":1}\n'
    assert told(rows, Shape(read=read)) == [
        '1 /v1/chat/completions {"messages":[{"role":"user","content":"Say yes"}]}',
        '2 /v1/chat/completions {"messages":[{"role":"system","content":"x"}]}',
        '3 /v1/completions {"prompt":"raw","n":2,"max_tokens":256}',
        "4 read_failed: KeyError: 'kind'",
    ]


def test_a_read_hook_that_makes_no_json_spoils_only_its_row() -> None:
    assert told(b"{}", Shape(read=lambda _: {"prompt": "x", "seed": {1}})) == [
        "1 read_failed: not JSON: Object of type set is not JSON serializable"
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{oops", "bad_json: Expecting property name enclosed in double quotes at character 2"),
        (b"[1]", "not_an_object: a list, not an object"),
        (b'"text"', "not_an_object: a string, not an object"),
        (b"7", "not_an_object: a number, not an object"),
        (b"null", "not_an_object: null, not an object"),
        (b"true", "not_an_object: true or false, not an object"),
        (b"", "blank: the line is blank"),
        (b" \t\r", "blank: the line is blank"),
        (b'{"prompt":"a\0b"}', "nul: a NUL at byte 13"),
        (b'{"prompt":"\xff"}', "not_utf8: not UTF-8 at byte 12"),
        (b'{"prompt":"\xed\xa0\x80"}', "not_utf8: not UTF-8 at byte 12"),
        (b'{"prompt":"\\ud800"}', "lone_surrogate: a \\u escape is half of a surrogate pair"),
        (b'{"prompt":"x","top_p":NaN}', "bad_json: NaN is not JSON"),
        (b'{"prompt":"x","top_p":-Infinity}', "bad_json: -Infinity is not JSON"),
        (b'\xef\xbb\xbf{"prompt":"x"}', "bad_json: a BOM that is not at the start of the file"),
        (b'\xe2\x80\xa8{"prompt":"x"}', "bad_json: Expecting value at character 1"),
        (b'{"prompt":"x"}{"prompt":"y"}', "bad_json: Extra data at character 15"),
        (b'{"prompt":"' + b"x" * LIMIT + b'"}', "too_long: the line has 1014 bytes"),
        (b'{"text":"x"}', "missing_key: neither prompt nor messages nor body is there"),
        (b'{"prompt":["x"]}', "bad_row: prompt must be a string"),
        (
            b'{"prompt":"x","messages":[1]}',
            "bad_row: prompt and messages are both there: leave one",
        ),
        (b'{"messages":[]}', "bad_row: messages must be a list that is not empty"),
        (b'{"prompt":"x","custom_id":""}', "bad_row: custom_id must be a string that is not empty"),
        (b'{"prompt":"x","custom_id":4}', "bad_row: custom_id must be a string that is not empty"),
        (
            b'{"body":{}}',
            "missing_key: custom_id, method, url missing: a row in OpenAI Batch form",
        ),
        (OPENAI.replace(b"POST", b"GET"), "bad_row: method must be POST"),
        (
            OPENAI.replace(b"/v1/chat/completions", b"http://169.254.169.254/latest"),
            "bad_row: url must be one of /rerank, /score, /v1/chat/completions, /v1/completions, "
            "/v1/embeddings, /v1/rerank, /v1/responses, /v1/score, /v2/rerank",
        ),
        (OPENAI.replace(b'{"model"', b'{"stream":true,"model"'),
         "bad_row: a row cannot be streamed: leave out stream"),
        (
            b'{"custom_id":"a","method":"POST","url":"/v1/score","body":[]}',
            "bad_row: body must be an object",
        ),
    ],
)  # fmt: skip
def test_a_bad_line_says_why_and_the_rest_runs(line: bytes, said: str) -> None:
    good = b'{"prompt":"fine"}'
    sent = ' /v1/completions {"prompt":"fine","max_tokens":256}'
    assert told(good + b"\n" + line + b"\n" + good) == [f"1{sent}", f"2 {said}", f"3{sent}"]


@pytest.mark.parametrize("depth", [100_000])
def test_a_line_nested_without_end_is_a_bad_line(depth: int) -> None:
    line = Line(1, b'{"prompt":' + b"[" * depth + b"]" * depth + b"}", 0)
    assert parse_line(line, Shape(), SeenIds()) == BadRow(1, "bad_json", "nested too deeply")


def test_a_number_of_too_many_digits_is_a_bad_line() -> None:
    item = parse_line(Line(1, b'{"seed":' + b"9" * 5000 + b"}", 0), Shape(), SeenIds())
    assert isinstance(item, BadRow)
    assert item.kind == "bad_json"


def test_what_json_allows_runs() -> None:
    """A BOM at the start, CRLF ends, a missing last newline, U+2028 within a string."""
    data = "\ufeff" + '{"prompt":"a"}\r\n{"prompt":"b\u2028c\u0085d"}'
    assert told(data.encode()) == [
        '1 /v1/completions {"prompt":"a","max_tokens":256}',
        '2 /v1/completions {"prompt":"b\u2028c\u0085d","max_tokens":256}',
    ]


def test_a_doubled_custom_id_is_the_error_of_the_later_row() -> None:
    row = b'{"custom_id":"a","prompt":"x"}\n'
    assert [type(item).__name__ for item in parsed(row + b"{}\n" + row)] == [
        "Row", "BadRow", "BadRow",
    ]  # fmt: skip
    assert parsed(row + row)[1] == BadRow(
        2, "doubled_custom_id", "custom_id is already that of line 1", "a"
    )


def test_a_finished_row_still_owns_its_custom_id() -> None:
    seen = SeenIds()
    note_custom_id(Line(1, b'{"custom_id":"a","prompt":"x"}', 30), seen)
    note_custom_id(Line(2, b'{"custom_id":', 13), seen)
    note_custom_id(Line(3, None, 10**9), seen)
    again = parse_line(Line(4, b'{"custom_id":"\\u0061","prompt":"y"}', 30), Shape(), seen)
    assert again == BadRow(4, "doubled_custom_id", "custom_id is already that of line 1", "a")


def test_rows_without_a_custom_id_are_called_by_their_line() -> None:
    rows = parsed(b'{"prompt":"x"}\n{"prompt":"y"}')
    assert [row.custom_id for row in rows] == ["line-1", "line-2"]


def test_a_line_of_100_mb_is_skipped_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "in"
    with path.open("wb") as file:
        file.write(b"{}\n")
        file.seek(100 << 20)
        file.write(b"\n{}")
    with path.open("rb") as file:
        lines = list(read_lines(file))
    assert [(line.number, line.raw) for line in lines] == [(1, b"{}"), (2, None), (3, b"{}")]
    assert sum(line.size for line in lines) == path.stat().st_size


@given(st.lists(st.binary(max_size=30).filter(lambda b: b"\n" not in b)), st.booleans())
def test_survey_and_reader_agree_on_the_lines(pieces: list[bytes], ended: bool) -> None:
    data = b"\n".join(pieces) + (b"\n" if ended else b"")
    file = io.BytesIO(data)
    lines = list(read_lines(file, 20))
    assert [line.number for line in lines] == list(range(1, len(lines) + 1))
    assert sum(line.size for line in lines) == len(data)
    assert len(lines) == data.count(b"\n") + (not data.endswith(b"\n") and data != b"")


def test_the_survey_counts_and_digests(tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_bytes(b"a\nb\n\nc")
    with open_input(path) as file:
        found = survey(file)
    assert (found.lines, found.size) == (4, 6)
    assert found.sha256 == hashlib.sha256(b"a\nb\n\nc").hexdigest()


def test_an_input_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the input: Is a directory"):
        open_input(tmp_path)
    with pytest.raises(UsageError, match="No such file"):
        open_input(tmp_path / "none")


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n")))
def test_text_reaches_the_request_unchanged(text: str) -> None:
    for ascii_only in (True, False):
        line = json.dumps({"prompt": text}, ensure_ascii=ascii_only).encode()
        row = parse_line(Line(1, line, len(line)), Shape(), SeenIds())
        assert isinstance(row, Row)
        assert json.loads(row.payload)["prompt"] == text


@given(st.sets(st.integers(0, 5000)), st.sets(st.integers(0, 5000)))
def test_the_done_set_is_a_set(added: set[int], dropped: set[int]) -> None:
    done = DoneSet()
    assert all(done.add(line) for line in added)
    assert not any(done.add(line) for line in added)
    for line in dropped:
        done.discard(line)
    left = added - dropped
    assert len(done) == len(left)
    assert {line for line in range(5001) if line in done} == left


def test_seen_ids_remember_the_first_line_of_each() -> None:
    chance = random.Random(1)
    names = [f"id-{chance.randrange(30_000)}" for _ in range(50_000)]
    seen, first = SeenIds(), dict[str, int]()
    for line, name in enumerate(names, 1):
        assert seen.first_line(name, line) == first.setdefault(name, line)


def test_rows_that_begin_alike_are_put_together() -> None:
    rows = parsed(b'{"prompt":"b 1"}\n{"prompt":"a 1"}\noops\n{"prompt":"b 0"}\n{"prompt":"a 0"}')
    assert [item.line for item in grouped(rows)] == [3, 5, 2, 4, 1]


def test_messages_are_compared_by_their_texts() -> None:
    def row(*contents: object) -> bytes:
        messages = [{"role": "user", "content": content} for content in contents]
        return json.dumps({"messages": messages}).encode()

    rows = parsed(b"\n".join((row("s", "b"), row([{"type": "text"}], "x"), row("s", "a"))))
    assert [item.line for item in grouped(rows)] == [2, 3, 1]


def test_windows_keep_memory_bounded() -> None:
    rows = parsed(b"\n".join(b'{"prompt":"%d"}' % (n % 7) for n in range(5000)))
    lines = [item.line for item in grouped(rows)]
    assert sorted(lines) == list(range(1, 5001))
    assert max(lines[:4096]) == 4096
