"""Which hosts an image goes to, what each lacks, and in which pieces it comes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllmdeploy.plan.image_push import (
    Stand,
    Standing,
    Wanted,
    lacking,
    layer_sizes,
    manifest,
    source_of,
    spared_pieces,
    stand,
)
from vllmdeploy.plan.transfer_pieces import Piece
from vllmdeploy.tools.images import Image, Store

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
IMAGE = Image(
    id="sha256:" + "1" * 64, arch="amd64", layers=(A, B, C), references=("x:1",), content="x"
)
OTHER = Image(id="sha256:" + "2" * 64, arch="amd64", layers=(A, B), content="y")
MIB = 1024 * 1024


def store(*images: Image, kind: str = "docker", problem: str = "") -> Store:
    return Store(images=images, kind=kind, problem=problem)


@pytest.mark.parametrize(
    ("there", "lacked"),
    [
        (store(), (A, B, C)),
        (store(OTHER), (C,)),
        (store(replace(OTHER, layers=(A, C))), (B, C)),
        (store(replace(OTHER, layers=(B, C))), (A, B, C)),
        (store(OTHER, replace(OTHER, layers=(A,))), (C,)),
        (store(OTHER, kind="containerd"), (A, B, C)),
        (store(replace(OTHER, layers=(A, B, C))), ()),
    ],
)
def test_a_layer_is_left_out_only_above_the_layers_that_are_there(
    there: Store, lacked: tuple[str, ...]
) -> None:
    assert lacking(there, IMAGE) == lacked


def test_a_layer_that_comes_twice_is_lacked_once() -> None:
    assert lacking(store(), replace(IMAGE, layers=(A, B, A))) == (A, B)


@pytest.mark.parametrize(
    ("there", "arch", "standing", "cause"),
    [
        (store(IMAGE), "amd64", Standing.READY, "ready"),
        (
            store(replace(IMAGE, references=())),
            "",
            Standing.UNNAMED,
            "there under another name",
        ),
        (
            store(replace(IMAGE, id="sha256:manifest"), kind="containerd"),
            "amd64",
            Standing.READY,
            "ready",
        ),
        (store(OTHER), "amd64", Standing.ABSENT, "1 of 3 layers are not there"),
        (
            store(),
            "arm64",
            Standing.REFUSED,
            "the image is built for amd64, the host is arm64",
        ),
        (store(problem="docker is not installed"), "", Standing.REFUSED, "docker is not installed"),
    ],
)
def test_every_host_stands_to_the_image_in_its_own_way(
    there: Store, arch: str, standing: Standing, cause: str
) -> None:
    found = stand(there, IMAGE, "x:1", arch=arch)
    assert (found.standing, found.cause(IMAGE)) == (standing, cause)


def test_without_a_name_its_identity_is_enough() -> None:
    found = stand(store(replace(IMAGE, references=())), IMAGE, "")
    assert (found.standing, found.id) == (Standing.READY, IMAGE.id)


def wanted(**stands: Stand) -> Wanted:
    return Wanted(image=IMAGE, reference="x:1", source="head", stands=stands)


def absent(*lacks: str) -> Stand:
    return Stand(standing=Standing.ABSENT, lacks=lacks)


def test_only_what_somebody_lacks_leaves_the_source() -> None:
    job = wanted(a=absent(C), b=absent(B, C), c=Stand(standing=Standing.READY))
    assert set(job.lacked) == {B, C}
    assert job.spared == (A,)
    assert job.standing(Standing.ABSENT) == ("a", "b")


@pytest.mark.parametrize(
    ("size", "piece"),
    [(0, 8), (256 * MIB, 8), (512 * MIB, 16), (8192 * MIB, 256), (10**12, 256)],
)
def test_pieces_grow_with_the_image_and_are_the_same_on_every_run(size: int, piece: int) -> None:
    job = replace(wanted(), image=replace(IMAGE, size=size))
    assert job.piece_bytes == piece * MIB
    assert job.folder == f"image-{'1' * 32}-{piece}"


def test_the_heads_word_counts_where_it_has_the_image() -> None:
    stores = {"b": store(IMAGE), "head": store(IMAGE), "c": store()}
    assert source_of(stores, "x:1", lead="head") == "head"
    assert source_of({**stores, "head": store()}, "x:1", lead="head") == "b"
    assert source_of({"c": store()}, "x:1", lead="head") is None


def test_pieces_of_layers_that_a_host_has_are_spared() -> None:
    a, c = "a" * 32, "c" * 32
    pieces = (
        Piece(0, 9, (f"{a}/00000",)),
        Piece(1, 9, (f"{c}/00000",)),
        Piece(2, 2, (f"{a}/00001", f"{c}/00001")),
    )
    assert spared_pieces(pieces, (C,)) == {0}
    assert spared_pieces(pieces, ()) == {0, 1, 2}
    sizes = {f"{a}/00000": 9, f"{a}/00001": 1, f"{c}/00000": 9}
    assert layer_sizes((A, B, C), sizes) == {A: 10, C: 9}
    made = manifest(IMAGE.id, sizes, dict.fromkeys(sizes, "0" * 64))
    assert (made.total, made.repo) == (19, IMAGE.id)
