"""How a model is cut: big files alone, small ones together, the same on every machine."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.plan.transfer_pieces import held, pieces_of
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
