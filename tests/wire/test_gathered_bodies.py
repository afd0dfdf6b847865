"""Bodies gathered piece by piece."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.wire.body import Gathered

SIZES = st.lists(st.sampled_from([1, 7, 1000, 200_000, 600_000]), max_size=6)


@given(SIZES, SIZES)
def test_what_was_added_is_taken_whole_and_the_next_begins_anew(
    first: list[int], second: list[int]
) -> None:
    gathered = Gathered()
    for sizes in (first, second):
        pieces = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
        for piece in pieces:
            gathered.add(piece)
        assert gathered.size == sum(sizes)
        assert gathered.take() == b"".join(pieces)
        assert gathered.size == sum(sizes)
        gathered.forget()
        assert (gathered.size, gathered.take()) == (0, b"")
