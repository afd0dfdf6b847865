"""Forms read in pieces: the same parts, wherever the pieces end."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllmdeploy.gateway.api.files_multipart import BadForm, Form, Part, boundary_of

FORM = (
    b"a preamble that means nothing\r\n"
    b'--b"x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--b"x\r\ncontent-type: a/b\r\ncontent-disposition: form-data; filename="a \\"b\\".jsonl"; '
    b'name=file\r\n\r\n{"a":1}\r\n--b\r\n\r\r\n--b"\r\n'
    b'--b"x\r\nContent-Disposition: form-data; name="empty"\r\n\r\n\r\n'
    b'--b"x--\r\nan epilogue'
)
PARTS = [
    (Part("purpose", None), b"batch"),
    (Part("file", 'a "b".jsonl'), b'{"a":1}\r\n--b\r\n\r\r\n--b"'),
    (Part("empty", None), b""),
]


def read(pieces: list[bytes], boundary: bytes = b'b"x') -> list[tuple[Part, bytes]]:
    form, found = Form(boundary), list[tuple[Part, bytes]]()
    for piece in pieces:
        for event in form.feed(piece):
            if isinstance(event, Part):
                found.append((event, b""))
            else:
                part, data = found[-1]
                found[-1] = (part, data + event)
    form.end()
    return found


def test_a_form_in_one_piece_and_byte_by_byte() -> None:
    assert read([FORM]) == PARTS
    assert read([FORM[at : at + 1] for at in range(len(FORM))]) == PARTS


@settings(deadline=None)
@given(st.lists(st.integers(0, len(FORM)), max_size=12))
def test_a_form_in_any_pieces(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(FORM)]
    assert read([FORM[a:b] for a, b in pairwise(edges)]) == PARTS


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(0, 300), max_size=8))
def test_any_content_comes_out_as_it_went_in(content: bytes, cuts: list[int]) -> None:
    whole = b'--zz\r\ncontent-disposition: form-data; name="file"\r\n\r\n'
    whole += content + b"\r\n--zz--\r\n"
    if b"\r\n--zz" in content:
        return
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    assert read(pieces, b"zz") == [(Part("file", None), content)]


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_whatever_comes_is_a_form_or_is_refused(data: bytes) -> None:
    form = Form(b"b")
    try:
        form.feed(b"--b\r\n" + data)
        form.end()
    except BadForm:
        return


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (FORM[:-20], "the form was cut off"),
        (b"", "the form was cut off"),
        (b'--b"x\r\nx: y\r\n\r\n', "a part has no name"),
        (b'--b"x\r\n' + b"x" * 9000, "the head of a part is too long"),
        (b'--b"xy\r\n', "a boundary is not at the end of its line"),
        (
            b'--b"x\r\ncontent-disposition: form-data; name=a\r\n\r\n\r\n' * 17,
            "the form has more than 16 parts",
        ),
    ],
)
def test_what_is_no_form_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadForm, match=why):
        read([data])


@pytest.mark.parametrize(
    ("text", "boundary"),
    [
        ("multipart/form-data; boundary=abc", b"abc"),
        ('Multipart/Form-Data; charset=utf-8; boundary="a b:c"', b"a b:c"),
    ],
)
def test_the_boundary_is_in_the_content_type(text: str, boundary: bytes) -> None:
    assert boundary_of(text) == boundary


@pytest.mark.parametrize(
    "text", ["", "application/json", "multipart/form-data", "multipart/mixed; boundary=b"]
)
def test_another_content_type_is_refused(text: str) -> None:
    with pytest.raises(BadForm):
        boundary_of(text)
