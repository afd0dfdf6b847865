"""What each kind of answer means for its row, and what is made of its text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.batch.answers import Reply, Usage, Verdict, answer_text, error_message, judge
from vllmdeploy.batch.parsing import (
    parse_json,
    parser_of,
    read_schema,
    repaired,
    schema_parser,
    structured,
)
from vllmdeploy.batch.records import CHAT, COMPLETIONS, Row
from vllmdeploy.batch.schema import check_schema, problem
from vllmdeploy.errors import UsageError

GOOD = {"id": "c1", "choices": [{"message": {"role": "assistant", "content": "yes"}}]}


def verdict(body: object, status: int = 200, path: str = CHAT) -> tuple[str, str, str]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = judge(path, Reply(status, "", raw))
    return answer.verdict.value, answer.kind, answer.message


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, GOOD),
        (CHAT, {"choices": [{"message": {"content": None, "tool_calls": [{"id": "t"}]}}]}),
        (CHAT, {"choices": [{"message": {"content": None, "reasoning": "hm"}}]}),
        (COMPLETIONS, {"choices": [{"text": ""}]}),
        ("/v1/embeddings", {"data": [{"embedding": [0.5]}]}),
        ("/v1/responses", {"output": [{}]}),
        ("/v1/rerank", {"results": [{}]}),
        ("/rerank", {"results": [{}]}),
        ("/v1/score", {"data": [{}]}),
    ],
)
def test_an_answer_of_the_right_shape_is_a_result(path: str, body: object) -> None:
    assert verdict(body, path=path) == ("good", "ok", "")


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        (CHAT, b"", "without JSON: Expecting value at character 1"),
        (CHAT, b"<html>", "without JSON: Expecting value at character 1"),
        (CHAT, b'{"choices":[', "without JSON: Expecting value at character 13"),
        (CHAT, b'{"choices":\xff}', "without JSON: not UTF-8 at byte 12"),
        (CHAT, json.dumps(GOOD).encode("utf-16"), "without JSON: not UTF-8 at byte 1"),
        (CHAT, b'{"choices":NaN}', "without JSON: NaN is not JSON"),
        (CHAT, [GOOD], "without JSON: a list, not an object"),
        (CHAT, {}, ", but choices is empty"),
        (CHAT, {"choices": []}, ", but choices is empty"),
        (CHAT, {"choices": {}}, ", but choices is empty"),
        (CHAT, {"choices": [1]}, ", but a choice is not an object"),
        (CHAT, {"choices": [{"text": "x"}]}, ", but a choice has no message with content"),
        (CHAT, {"choices": [{"message": {"content": 3}}]}, ", but a choice has no message"),
        (CHAT, {**GOOD, "id": 7}, ", but its id is not a string"),
        (CHAT, {"error": {"message": "boom"}}, ", but it holds an error: boom"),
        (COMPLETIONS, GOOD, ", but a choice has no text"),
        ("/v1/embeddings", {"data": []}, ", but data is not a list with something in"),
        ("/v1/rerank", {"data": [1]}, ", but results is not a list with something in"),
    ],
)
def test_nonsense_is_to_be_asked_again(path: str, body: object, why: str) -> None:
    said, kind, message = verdict(body, path=path)
    assert (said, kind) == ("again", "nonsense")
    assert message.startswith("HTTP 200")
    assert why in message


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, ("rejected", "http_400")), (404, ("rejected", "http_404")),
        (403, ("rejected", "http_403")), (413, ("rejected", "http_413")),
        (302, ("rejected", "http_302")), (401, ("stop", "unauthorized")),
        (429, ("busy", "busy")), (503, ("busy", "busy")), (529, ("busy", "busy")),
        (500, ("again", "http_500")), (502, ("again", "http_502")), (408, ("again", "http_408")),
    ],
)  # fmt: skip
def test_statuses(status: int, expected: tuple[str, str]) -> None:
    assert verdict({"error": {"message": "why"}}, status) == (
        *expected,
        f"HTTP {status}: why",
    )


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0", 0.0), ("", None), ("-1", None), ("9" * 9, None), ("soon", None)],
)
def test_retry_after_is_read_in_seconds(header: str, seconds: float | None) -> None:
    assert judge(CHAT, Reply(503, header, b"")).retry_after == seconds


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4}, Usage(3, 4)),
        ({"input_tokens": 3, "output_tokens": 4}, Usage(3, 4)),
        ({"prompt_tokens": True, "completion_tokens": -4}, Usage(0, 0)),
        ({"prompt_tokens": 10**30, "completion_tokens": "4"}, Usage(0, 0)),
        (None, Usage(0, 0)),
        ([], Usage(0, 0)),
    ],
)
def test_usage_is_read_with_care(usage: object, expected: Usage) -> None:
    raw = json.dumps({**GOOD, "usage": usage}).encode()
    assert judge(CHAT, Reply(200, "", raw)).usage == expected


def test_an_answer_on_several_lines_is_kept_on_one() -> None:
    raw = json.dumps(GOOD, indent=2).encode()
    body = judge(CHAT, Reply(200, "", raw)).body
    assert b"\n" not in body
    assert json.loads(body) == GOOD


@given(st.binary(max_size=60), st.sampled_from([200, 400, 429, 500]))
def test_whatever_comes_its_record_is_one_line_of_json(raw: bytes, status: int) -> None:
    answer = judge(CHAT, Reply(status, "", raw))
    assert b"\n" not in answer.body
    json.loads(answer.body.decode())
    assert answer.verdict is not Verdict.GOOD


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"error":{"message":"a"}}', "a"), (b'{"error":"b"}', "b"), (b'{"message":"c"}', "c"),
        (b'{"detail":"d"}', '{"detail":"d"}'), (b"plain", "plain"), (b"", "(empty answer)"),
        (b'{"error":{"code":1}}', '{"code":1}'), (b"x" * 999, "x" * 300),
    ],
)  # fmt: skip
def test_the_instance_is_quoted(raw: bytes, message: str) -> None:
    assert error_message(raw) == message


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (GOOD, "yes"), ({"choices": [{"text": "t"}]}, "t"), ({"choices": []}, None), (None, None),
        ({"choices": [{"message": {"content": None}}]}, None), ({"data": []}, None),
    ],
)  # fmt: skip
def test_the_text_of_an_answer(value: object, text: str | None) -> None:
    assert answer_text(value) == text


@pytest.mark.parametrize(
    "text", ['{"a":1}', ' {"a":1}\n', '```json\n{"a":1}\n```', '```\n{"a":1}```']
)
def test_json_is_found_in_a_fence_too(text: str) -> None:
    assert parse_json(text) == {"a": 1}


def test_regex_gives_groups_by_name_the_first_group_or_the_match() -> None:
    assert parser_of(r"regex:(?P<a>\d)-(?P<b>\d)")("x 1-2") == {"a": "1", "b": "2"}
    assert parser_of(r"regex:is (\w+)")("it is so") == "so"
    assert parser_of(r"regex:\d+")("it is 42") == "42"
    with pytest.raises(ValueError, match="nothing matches"):
        parser_of(r"regex:\d+")("none")


@pytest.mark.parametrize("words", ["xml", "regex", "regex:", "regex:("])
def test_an_unknown_parser_is_refused(words: str) -> None:
    with pytest.raises(UsageError, match="--parse"):
        parser_of(words)


SCHEMA = {
    "type": "object",
    "properties": {
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "label": {"enum": ["good", "bad"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 2},
        "note": {"type": ["string", "null"], "maxLength": 3},
        "either": {"anyOf": [{"type": "string"}, {"type": "number", "exclusiveMinimum": 0}]},
    },
    "required": ["score"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]+$"}},
}


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        ({"score": 3, "label": "good", "tags": ["a"], "note": None, "either": 0.5}, ""),
        ({"score": 3.0}, ""),
        ({}, "answer: score missing"),
        ({"score": 0}, "answer.score: below 1"),
        ({"score": 6}, "answer.score: above 5"),
        ({"score": True}, "answer.score: not integer"),
        ({"score": 3.5}, "answer.score: not integer"),
        ({"score": 3, "label": "so"}, "answer.label: not one of ['good', 'bad']"),
        ({"score": 3, "tags": ["a", "B"]}, "answer.tags[1]: does not match ^[a-z]+$"),
        ({"score": 3, "tags": ["a"] * 3}, "answer.tags: more items than 2"),
        ({"score": 3, "note": "long"}, "answer.note: longer than 3"),
        ({"score": 3, "either": 0}, "answer.either: fits none of anyOf"),
        ({"score": 3, "more": 1}, "answer.more: nothing is allowed here"),
        ([], "answer: not object"),
    ],
)
def test_schema(value: object, wrong: str) -> None:
    check_schema(SCHEMA, "s.json")
    assert problem(value, SCHEMA) == wrong
    parse = schema_parser(SCHEMA)
    if wrong:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - its text is compared
            parse(json.dumps(value))
        assert str(error.value) == wrong
    else:
        assert parse(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([], "s.json: a schema must be an object"),
        ({"properties": {"a": 1}}, r"s.json.properties.a: a schema must be"),
        ({"properties": []}, "s.json.properties: must be an object of schemas"),
        ({"anyOf": []}, "s.json.anyOf: must be a list of schemas"),
        ({"uniqueItems": True}, "s.json: the schema keyword uniqueItems is not supported"),
        ({"type": "text"}, "s.json: type cannot be 'text'"),
        ({"pattern": "("}, "pattern cannot be"),
        ({"minimum": "1"}, "minimum cannot be"),
        ({"enum": []}, "enum cannot be"),
        ({"required": "a"}, "required cannot be"),
        ({"$ref": "http://x"}, "only references within the schema"),
        ({"$ref": "#/$defs/no"}, "not found in the schema"),
    ],
)
def test_a_schema_that_could_not_be_checked_is_refused_at_the_start(
    schema: object, said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        check_schema(schema, "s.json")
    assert said in str(refused.value)


def test_a_schema_that_refers_to_itself_ends() -> None:
    schema = {"$ref": "#"}
    check_schema(schema, "s")
    assert problem(1, schema) == "answer: nested too deeply"


def test_one_of_means_exactly_one() -> None:
    schema = {"oneOf": [{"type": "integer"}, {"minimum": 3}], "allOf": [{"type": "number"}]}
    assert [problem(value, schema) for value in (1, 3.5, 4, "x")] == [
        "", "", "answer: fits 2 of oneOf", "answer: not number",
    ]  # fmt: skip


def test_a_repair_shows_the_answer_and_what_was_wrong() -> None:
    body: dict[str, object] = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
    row = Row(1, "a", CHAT, body, b"", b"{}")
    again = repaired(row, "bad", "no JSON")
    assert json.loads(again.payload)["messages"] == [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "bad"},
        {
            "role": "user",
            "content": "That answer cannot be used: no JSON. Answer again with the corrected "
            "answer only, without any other words.",
        },
    ]
    assert row.body == body
    raw = Row(1, "a", COMPLETIONS, {"prompt": "p"}, b"p", b"{}")
    assert repaired(raw, "bad", "no JSON") == raw


def test_structured_output_names_the_schema() -> None:
    assert structured({"type": "object"}) == {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "row", "schema": {"type": "object"}, "strict": True},
        }
    }


@pytest.mark.parametrize(
    ("text", "said"), [("{", "Expecting property name"), ("3", "a schema must be an object")]
)
def test_a_schema_file_that_is_none_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "s.json"
    with pytest.raises(UsageError, match="cannot read the schema: No such file"):
        read_schema(path)
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_schema(path)
