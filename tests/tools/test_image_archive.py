"""Archives taken apart and put together again, by a real shell and a stand-in for Docker."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.docker import fake_docker
from vllmdeploy.core.command import Result
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools import image_archive
from vllmdeploy.tools.image_archive import Exported, Room

PIECE = 1000


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


LAYERS = (b"base" * 600, b"ray" * 333, b"top" * 7)
DIGESTS = tuple(f"sha256:{digest(one)}" for one in LAYERS)
CONFIG = json.dumps({"rootfs": {"diff_ids": list(DIGESTS)}, "config": {"Env": ["A=ü"]}}).encode()


def archive(*, manifest: bytes | None = None, linked: bool = False) -> bytes:
    """As `docker save` writes it; `linked` repeats the first layer as a link, as it may."""
    names = [f"blobs/sha256/{digest(one)}" for one in LAYERS]
    layers = [*names, "again/layer.tar"] if linked else names
    said = json.dumps([{"Config": "config.json", "RepoTags": ["x:1"], "Layers": layers}]).encode()
    with io.BytesIO() as made:
        with tarfile.open(fileobj=made, mode="w") as tar:
            for name, content in (*zip(names, LAYERS, strict=True), ("config.json", CONFIG)):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            if linked:
                link = tarfile.TarInfo("again/layer.tar")
                link.type, link.linkname = tarfile.SYMTYPE, f"../{names[0]}"
                tar.addfile(link)
            entry = tarfile.TarInfo("manifest.json")
            content = said if manifest is None else manifest
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        return made.getvalue()


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalShell:
    (tmp_path / "saved.tar").write_bytes(archive())
    text = f"case $1 in save) cat {tmp_path}/saved.tar ;; load) cat > {tmp_path}/loaded.tar ;; esac"
    return fake_docker(tmp_path, text, monkeypatch)


def exported(shell: LocalShell, folder: Path, *, spared: tuple[str, ...] = ()) -> Result:
    owner = str(os.getuid())
    command = image_archive.export(
        str(folder), "sha256:x", spared=spared, piece_bytes=PIECE, owner=owner
    )
    return shell.run(command)


def test_what_was_taken_apart_is_loaded_as_it_was(shell: LocalShell, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    found = image_archive.parse_export(exported(shell, folder))
    assert (found.problem, found.config, found.layers) == ("", CONFIG, DIGESTS)
    assert found.digest == f"sha256:{digest(CONFIG)}"
    arranged = shell.run(image_archive.arrange(str(folder), found, DIGESTS))
    pieces = image_archive.parse_pieces(arranged)
    base = digest(LAYERS[0])[:32]
    assert {path: size for path, size in pieces.items() if path.startswith(base)} == {
        f"{base}/00000": 1000,
        f"{base}/00001": 1000,
        f"{base}/00002": 400,
    }
    sizes = {one: len(content) for one, content in zip(DIGESTS, LAYERS, strict=True)}
    lacked = DIGESTS[1:]
    heads = image_archive.heads(found, sizes, lacked)
    assert shell.run(image_archive.load(str(folder), lacked, heads)).ok
    with tarfile.open(tmp_path / "loaded.tar") as tar:
        loaded = {one.name: (tar.extractfile(one) or io.BytesIO()).read() for one in tar}
    names = [f"{digest(one)}/layer.tar" for one in LAYERS]
    config = f"{digest(CONFIG)}.json"
    assert json.loads(loaded.pop("manifest.json")) == [
        {"Config": config, "RepoTags": None, "Layers": names}
    ]
    assert loaded == {config: CONFIG, names[1]: LAYERS[1], names[2]: LAYERS[2]}


def test_layers_that_nobody_lacks_are_not_kept(shell: LocalShell, tmp_path: Path) -> None:
    folder = tmp_path / "pieces"
    found = image_archive.parse_export(exported(shell, folder, spared=DIGESTS[:2]))
    arranged = shell.run(image_archive.arrange(str(folder), found, DIGESTS))
    assert image_archive.parse_pieces(arranged) == {f"{digest(LAYERS[2])[:32]}/00000": 21}
    assert [path.name for path in folder.iterdir()] == [digest(LAYERS[2])[:32]]


def test_a_layer_that_comes_twice_is_kept_once(shell: LocalShell, tmp_path: Path) -> None:
    twice = json.dumps({"rootfs": {"diff_ids": [*DIGESTS, DIGESTS[0]]}}).encode()
    (tmp_path / "saved.tar").write_bytes(archive(linked=True))
    found = image_archive.parse_export(exported(shell, tmp_path / "pieces"))
    assert found.problem == "its archive does not tell which layers it has"
    said = exported(shell, tmp_path / "pieces")
    members = image_archive.parse_export(Result(0, _with_config(said.stdout, twice)))
    arranged = shell.run(image_archive.arrange(str(tmp_path / "pieces"), members, DIGESTS))
    assert len({path.split("/")[0] for path in image_archive.parse_pieces(arranged)}) == 3


def _with_config(said: str, config: bytes) -> str:
    from base64 import b64encode

    lines = said.splitlines()
    kept = [line for line in lines if not line.startswith("config ")]
    return "\n".join((*kept, f"config {b64encode(config).decode()}"))


def test_a_docker_that_fails_half_way_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.tar").write_bytes(archive()[:1500])
    text = f"cat {tmp_path}/half.tar; echo 'no such image: x' >&2; exit 1"
    shell = fake_docker(tmp_path, text, monkeypatch)
    result = exported(shell, tmp_path / "pieces")
    assert not result.ok
    assert "no such image: x" in result.stderr
    assert list((tmp_path / "pieces").iterdir()) == []


def test_an_archive_that_was_cut_short_is_no_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half.tar").write_bytes(archive()[:1500])
    shell = fake_docker(tmp_path, f"cat {tmp_path}/half.tar", monkeypatch)
    assert not exported(shell, tmp_path / "pieces").ok


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{}", b"[]", b"[{}]", b'[{"Layers": 1}]', b'[{"Config": "no.json", "Layers": []}]'],
)
def test_an_archive_of_another_form_is_refused(
    shell: LocalShell, tmp_path: Path, manifest: bytes
) -> None:
    (tmp_path / "saved.tar").write_bytes(archive(manifest=manifest))
    result = exported(shell, tmp_path / "pieces")
    assert not result.ok or image_archive.parse_export(result).problem


@given(st.text())
def test_no_answer_ends_the_reading(text: str) -> None:
    image_archive.parse_export(Result(0, text))
    image_archive.parse_pieces(Result(0, text))
    image_archive.parse_room(Result(0, text))


MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("room", "lacking"),
    [
        (Room(), ""),
        (Room(164 * MIB, 264 * MIB, apart=True), ""),
        (
            Room(163 * MIB, 264 * MIB, apart=True),
            "100 MiB are needed for its pieces, and 163 MiB are free",
        ),
        (
            Room(1000 * MIB, 263 * MIB, apart=True),
            "200 MiB are needed in Docker's folder, and 263 MiB are free",
        ),
        (Room(364 * MIB, 364 * MIB), ""),
        (Room(363 * MIB, 363 * MIB), "300 MiB are needed for its pieces, and 363 MiB are free"),
    ],
)
def test_room_is_needed_for_the_pieces_the_archive_and_the_image(room: Room, lacking: str) -> None:
    assert room.lacks(100 * MIB) == lacking


def test_a_host_tells_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shell = fake_docker(tmp_path, f"echo {tmp_path}", monkeypatch)
    found = image_archive.parse_room(shell.run(image_archive.room(f"{tmp_path}/not/there")))
    assert found.pieces
    assert found.docker
    assert not found.apart


def test_a_config_without_layers_has_none() -> None:
    assert Exported(b"{}").layers == ()
    assert Exported(b"[]").layers == ()
    assert image_archive.folder_of("sha256:" + "a" * 64) == "a" * 32
