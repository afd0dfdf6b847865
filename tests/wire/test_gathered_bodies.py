"""Bodies gathered piece by piece."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.wire.body import Gathered

SIZES = st.lists(st.sampled_from([1, 7, 1000, 200_000, 600_000]), max_size=6)


@given(SIZES, SIZES, st.booleans())
def test_what_was_added_is_taken_whole_and_the_next_begins_anew(
    first: list[int], second: list[int], known: bool
) -> None:
    gathered = Gathered()
    for sizes in (first, second):
        pieces = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
        gathered.expect(sum(sizes) if known else -1)
        for piece in pieces:
            gathered.add(piece)
        assert gathered.size == sum(sizes)
        assert gathered.take() == b"".join(pieces)
        assert gathered.size == sum(sizes)
        gathered.forget()
        assert (gathered.size, gathered.take()) == (0, b"")


def test_a_long_body_of_known_length_is_never_copied_as_it_grows() -> None:
    gathered = Gathered()
    gathered.expect(64 << 20)
    piece = bytes(1 << 20)
    gathered.add(piece)

    def add_the_rest() -> None:
        for _ in range(63):
            gathered.add(piece)

    assert tracemalloc_peak(add_the_rest) < len(piece)
    assert tracemalloc_peak(gathered.take) < len(piece)
    assert gathered.size == 64 << 20


def tracemalloc_peak(work: Callable[[], object]) -> int:
    """Bytes that Python took for it beyond what it had."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
