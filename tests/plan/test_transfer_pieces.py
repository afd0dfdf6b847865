"""How a model is cut: big files alone, small ones together, the same on every machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.plan.transfer_pieces import held, pieces_of, with_ranges
from vllmdeploy.tools.manifest import Manifest, ModelFile

MiB = 1024 * 1024


def manifest(*sizes: int) -> Manifest:
    files = [ModelFile(f"f{n:05}", size, "0" * 64) for n, size in enumerate(sizes)]
    return Manifest(source="folder", repo="", files=tuple(files))


def test_big_files_go_alone_biggest_first_and_small_ones_together() -> None:
    cut = pieces_of(manifest(10, 5000 * MiB, 20, 4000 * MiB, 30))
    assert [(piece.number, piece.size, piece.paths) for piece in cut] == [
        (0, 5000 * MiB, ("f00001",)),
        (1, 4000 * MiB, ("f00003",)),
        (2, 60, ("f00000", "f00002", "f00004")),
    ]


def test_five_thousand_small_files_are_a_few_dozen_transfers() -> None:
    cut = pieces_of(manifest(*[20_000] * 5000))
    assert len(cut) == 65
    assert sum(len(piece.paths) for piece in cut) == 5000


def test_empty_files_are_part_of_a_piece() -> None:
    assert [piece.paths for piece in pieces_of(manifest(0, 0))] == [("f00000", "f00001")]


def test_a_piece_is_held_when_all_its_files_are_good() -> None:
    cut = pieces_of(manifest(5000 * MiB, 1, 2))
    assert held(cut, {"f00000", "f00001"}) == {0}
    assert held(cut, {"f00001", "f00002"}) == {1}


@given(st.lists(st.integers(0, 200 * MiB), min_size=1, max_size=200))
def test_every_file_is_in_exactly_one_piece(sizes: list[int]) -> None:
    whole = manifest(*sizes)
    cut = pieces_of(whole)
    paths = [path for piece in cut for path in piece.paths]
    assert sorted(paths) == sorted(whole.by_path)
    assert [piece.number for piece in cut] == list(range(len(cut)))
    assert sum(piece.size for piece in cut) == whole.total
    assert [piece.size for piece in cut] == sorted((p.size for p in cut), reverse=True)


def test_big_files_are_cut_into_ranges_one_file_after_another() -> None:
    cut = with_ranges(pieces_of(manifest(40 * MiB + 5, 20 * MiB, 15 * MiB, 10)))
    assert [(p.number, p.paths[0], p.start, p.size, p.in_ranges) for p in cut] == [
        (0, "f00000", 0, 9 * MiB, False),
        (1, "f00000", 9 * MiB, 9 * MiB, False),
        (2, "f00000", 18 * MiB, 9 * MiB, False),
        (3, "f00000", 27 * MiB, 9 * MiB, False),
        (4, "f00000", 36 * MiB, 4 * MiB + 5, False),
        (5, "f00001", 0, 10 * MiB, False),
        (6, "f00001", 10 * MiB, 10 * MiB, False),
        (7, "f00002", None, 15 * MiB, False),
        (8, "f00003", None, 10, False),
        (9, "f00000", None, 40 * MiB + 5, True),
        (10, "f00001", None, 20 * MiB, True),
    ]


def test_the_biggest_models_are_a_few_hundred_ranges() -> None:
    cut = with_ranges(pieces_of(manifest(*[5000 * MiB] * 140)))
    assert len(cut) < 600
    assert all(piece.start is None or piece.start % MiB == 0 for piece in cut)


def test_a_range_is_held_when_its_file_is_good_or_all_of_it_came() -> None:
    cut = with_ranges(pieces_of(manifest(40 * MiB, 20 * MiB)))
    assert held(cut, {"f00001"}) == {5, 6, 8}
    came = {"f00000": [(0, 8 * MiB), (9 * MiB, 24 * MiB)]}
    assert held(cut, set(), came) == {0, 2}


@given(st.lists(st.integers(0, 200 * MiB), min_size=1, max_size=50))
def test_ranges_are_every_byte_of_their_file_once(sizes: list[int]) -> None:
    whole = manifest(*sizes)
    cut = with_ranges(pieces_of(whole))
    assert [piece.number for piece in cut] == list(range(len(cut)))
    for piece in cut:
        if not piece.in_ranges:
            continue
        ranges = [p for p in cut if p.start is not None and p.paths == piece.paths]
        ends = [0]
        for each in sorted(ranges, key=lambda one: one.start or 0):
            assert each.start == ends[-1]
            ends.append(ends[-1] + each.size)
        assert ends[-1] == whole.by_path[piece.paths[0]].size == piece.size
    moved = [piece for piece in cut if not piece.in_ranges]
    assert sum(piece.size for piece in moved) == whole.total
