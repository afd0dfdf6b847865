"""What is asked of a host about its models and done to them, with the host's own programs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from vllmdeploy.core.command import Command, Result, check
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools import model_files
from vllmdeploy.tools.manifest import Manifest, ModelFile
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.model_files_found import FoundStore
from vllmdeploy.tools.model_files_tree import Tree, hub_cache, pickled, tree_faults

FILES = {"config.json": b"{}", "a b.txt": b"spaces", "sub/'x\".bin": b"quotes"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def manifest_of(files: dict[str, bytes]) -> Manifest:
    return Manifest(
        source="folder",
        repo="",
        files=tuple(
            ModelFile(path, len(content), hashlib.sha256(content).hexdigest())
            for path, content in files.items()
        ),
    )


def run(command: Command) -> Result:
    return LocalShell("here").run(command)


def done(command: Command) -> Result:
    return check("here", command, run(command))


def looked(root: Path, name: str = "") -> FoundStore:
    return ask_one(LocalShell("here"), model_files.look(str(root), name))


def tree(root: Path, name: str = "m") -> Tree:
    found = looked(root, name).model(name)
    assert found is not None
    return found.tree


def test_a_folder_that_does_not_exist_says_how_much_would_fit(root: Path) -> None:
    store = looked(root / "not" / "there")
    assert (store.there, store.models, store.writable) == (False, (), True)
    assert store.free_bytes is not None
    assert store.free_bytes > 0


def test_a_folder_by_hand_has_files_and_no_mark(root: Path) -> None:
    fill(root / "m", FILES)
    store = looked(root)
    found = store.model("m")
    assert found is not None
    assert found.tree.files == {path: len(content) for path, content in FILES.items()}
    assert (found.ready, found.digest, found.marked) == ("", "", False)
    assert (store.there, store.writable) == (True, True)
    assert tree_faults(found.tree) == ()


def test_what_is_published_and_marked_is_ready(root: Path) -> None:
    place, manifest = ModelPlace(str(root), "m"), manifest_of(FILES)
    fill(Path(place.incoming), {**FILES, ".cache/x": b"left by a client"})
    done(model_files.publish(place, manifest))
    half = looked(root, "m").model("m")
    assert half is not None
    assert (half.digest, half.marked) == (manifest.digest, False)
    done(model_files.mark_ready(place, manifest))
    found = looked(root, "m")
    assert found.incoming("m") is None
    ready = found.model("m")
    assert ready is not None
    assert ready.marked
    assert sorted(ready.tree.files) == sorted(FILES)
    assert not (root / "m/.cache").exists()


def test_a_model_is_never_published_over_another(root: Path) -> None:
    place = ModelPlace(str(root), "m")
    fill(Path(place.incoming), FILES)
    fill(root / "m", {"old": b"1"})
    result = run(model_files.publish(place, manifest_of(FILES)))
    assert (result.status, result.stderr) == (1, f"{root}/m is there already\n")
    assert (root / "m/old").read_bytes() == b"1"


def test_nothing_is_marked_that_has_another_manifest(root: Path) -> None:
    place = ModelPlace(str(root), "m")
    fill(root / "m", FILES)
    done(model_files.write_manifest(place, manifest_of({"other": b""})))
    result = run(model_files.mark_ready(place, manifest_of(FILES)))
    assert (result.status, result.stderr) == (
        1,
        f"{root}/m/.vllmdeploy/MANIFEST.json is another one\n",
    )
    assert not (root / "m/.vllmdeploy/READY").exists()


def test_every_hash_comes_back_by_path(root: Path) -> None:
    folder = fill(root / "m", FILES)
    result = done(model_files.hashes(str(folder), list(FILES), total=100))
    found = dict(filter(None, map(model_files.parse_hash, result.stdout.splitlines())))
    assert found == {file.path: file.sha256 for file in manifest_of(FILES).files}
    assert model_files.parse_hash("sha256sum: x: No such file") is None


def test_a_repair_takes_the_mark_away_before_anything_moves(root: Path) -> None:
    place = ModelPlace(str(root), "m")
    fill(root / "m", {**FILES, ".vllmdeploy/READY": b"x"})
    done(model_files.reopen(place))
    assert not (root / "m").exists()
    assert sorted(p.name for p in Path(place.incoming, ".vllmdeploy").iterdir()) == []
    fill(root / "m", {"config.json": b"newer"})
    done(model_files.reopen(place))
    assert [path.name for path in Path(place.incoming).iterdir()] == ["config.json"]


def test_remove_takes_the_model_and_its_unfinished_copy_and_nothing_else(root: Path) -> None:
    place = ModelPlace(str(root), "m")
    fill(root / "m", FILES)
    fill(Path(place.incoming), FILES)
    fill(root / "n", FILES)
    done(model_files.remove(place))
    assert [store.name for store in looked(root).models] == ["n"]
    done(model_files.remove(place))


def test_remove_never_follows_a_link_out_of_the_store(root: Path, tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", FILES)
    (root / "m").symlink_to(elsewhere)
    (root / ".incoming").symlink_to(tmp_path)
    result = run(model_files.remove(ModelPlace(str(root), "m")))
    assert (result.status, result.stderr) == (1, f"{root}/m is a link; remove it by hand\n")
    (root / "m").unlink()
    run(model_files.remove(ModelPlace(str(root), "elsewhere")))
    assert (elsewhere / "config.json").exists()


def test_nothing_is_written_through_a_link_out_of_the_store(root: Path, tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", FILES)
    (root / "m").symlink_to(elsewhere)
    fill(root / "n", FILES)
    (root / "n/.vllmdeploy").symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    manifest = manifest_of(FILES)
    for name in ("m", "n"):
        place = ModelPlace(str(root), name)
        for command in (
            model_files.write_manifest(place, manifest),
            model_files.mark_ready(place, manifest),
            model_files.unmark(place),
        ):
            assert "is a link: a model is a folder in" in run(command).stderr
    (root / ".incoming").symlink_to(elsewhere)
    for command in (
        model_files.begin(ModelPlace(str(root), "x"), 1),
        model_files.publish(ModelPlace(str(root), "x"), manifest),
        model_files.reopen(ModelPlace(str(root), "n")),
    ):
        assert "is a link" in run(command).stderr
    assert sorted(elsewhere.rglob("*")) == before


def test_odd_things_in_a_model_are_refused_by_name(root: Path) -> None:
    folder = fill(root / "m", FILES)
    (root.parent / "secret").write_text("outside")
    os.mkfifo(folder / "pipe")
    (folder / "absolute").symlink_to("/etc/passwd")
    (folder / "up").symlink_to("../../secret")
    (folder / "loop").symlink_to("loop")
    (folder / "nowhere").symlink_to("not-there")
    (folder / "inside").symlink_to("config.json")
    (folder / "folder").symlink_to("sub")
    (folder / "to-pipe").symlink_to("pipe")
    found = tree(root)
    assert sorted(tree_faults(found)) == [
        "absolute: an absolute link, to /etc/passwd",
        f"folder: a link to something that is no file, {folder}/sub",
        "loop: a link that loops or leads nowhere, to loop",
        "nowhere: a link that loops or leads nowhere, to not-there",
        "pipe: neither a file nor a folder, or not readable",
        f"to-pipe: a link to something that is no file, {folder}/pipe",
        f"up: a link out of the model's folder, to {root.parent}/secret",
    ]
    assert found.sizes["inside"] == 2


def test_a_name_with_a_line_end_cannot_pass_for_another_file(root: Path) -> None:
    fill(root / "m", {"a\nfile 1 .": b"1", "x\nfile 99 ./config.json": b"12", **FILES})
    assert tree_faults(tree(root))


def test_a_name_that_is_not_utf8_is_refused(root: Path) -> None:
    fill(root / "m", FILES)
    Path(os.fsdecode(os.fsencode(root / "m") + b"/\xff.bin")).touch()
    (fault,) = tree_faults(tree(root))
    assert fault.endswith("what is not UTF-8 text")


def test_the_hubs_cache_links_to_blobs_beside_it(root: Path) -> None:
    commit = "a" * 40
    cache = fill(root / "cache", {"models--o--n/blobs/b1": b"12", "blobs/aa/b2": b"123"})
    snapshot = cache / "models--o--n/snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/b1")
    (snapshot / "model.safetensors").symlink_to("../../../blobs/aa/b2")
    (root / "cache/other").write_text("x")
    (snapshot / "stolen").symlink_to("../../../other")
    found = ask_one(LocalShell("here"), model_files.look(str(snapshot.parent), commit))
    model = found.model(commit)
    assert model is not None
    assert tree_faults(model.tree) == (
        f"stolen: a link out of the model's folder, to {cache}/other",
    )
    assert model.tree.sizes == {"config.json": 2, "model.safetensors": 3, "stolen": 1}
    assert hub_cache(model.tree.home) == ("o/n", commit)


def test_names_that_no_model_has_are_passed_over(root: Path) -> None:
    for name in ("a b", "x\ny", ".hidden"):
        fill(root / name, FILES)
    (root / "file").touch()
    assert looked(root).models == ()


def test_an_empty_folder_is_no_model(root: Path) -> None:
    (root / "m").mkdir()
    assert tree_faults(tree(root)) == ("it has no files",)


def test_pickled_weights_are_named() -> None:
    assert pickled(("a.bin", "a.safetensors", "b.pt")) == ("a.bin", "b.pt")
