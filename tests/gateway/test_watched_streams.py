"""What is known of a stream that only passes through, however the network cuts it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.gateway.sse import Watch

USUAL = b'data: {"id":"cmpl-1","choices":[{"text":"a \\n\\ndata: {\\"error\\" b"}]}\n\n'
DONE = b"data: [DONE]\n\n"
# What an engine says in a stream of its own that went wrong.
ERRORS = (
    b'data: {"error":{"message":"no"}}\n\n',
    b'data: {"object":"error","message":"no"}\n\n',
    b"event: error\ndata: {}\n\n",
)
_EVENTS = st.sampled_from([USUAL, DONE, *ERRORS, b": ping\n\n", b'data: {"id":1}\n\n'])


def watched(pieces: list[bytes]) -> Watch:
    watch = Watch()
    for piece in pieces:
        watch.see(piece)
    return watch


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@given(st.lists(_EVENTS, max_size=8), st.integers(1, 100))
def test_errors_and_the_end_are_seen_however_the_events_are_cut(
    events: list[bytes], size: int
) -> None:
    whole = b"".join(events)
    has_failed = any(event in ERRORS for event in events)
    for pieces in (events, [whole], cut(whole, size)):
        watch = watched(pieces)
        assert watch.failed is has_failed
        assert watch.done or not events or events[-1] != DONE


@given(st.lists(st.just(USUAL), max_size=8).map(lambda events: [*events, DONE]))
def test_events_in_pieces_of_their_own_are_counted(events: list[bytes]) -> None:
    """As one each, whatever their text says."""
    assert watched(events).events == len(events)


@given(st.binary(max_size=30), st.integers(0, len(USUAL)))
def test_what_is_not_whole_is_ended_before_an_error_is_told(noise: bytes, cut_at: int) -> None:
    text = USUAL + noise.replace(b"\n", b"") + USUAL[:cut_at]
    told = watched([USUAL, text[len(USUAL) :]]).error_event("gone")
    whole = text.endswith(b"\n\n")
    assert told.startswith(b"data: " if whole else b"\n\ndata: ")


def test_an_event_of_two_lines_is_not_taken_for_a_usual_one() -> None:
    assert watched([b'data: {"id":1}\n\nevent: error\n\n']).failed
    assert watched([b'data: {"id"', b":1}\n\nevent: err", b"or\ndata: {}\n\n"]).failed
    assert not watched([USUAL, DONE, USUAL, b'data: {"id":2}\nx' + b"y" * 80]).done
