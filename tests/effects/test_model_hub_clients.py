"""The hubs' real clients in their own process, against a hub on loopback."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.hub_server import COMMIT, Hub, HubRepo, git_sha1, hub_server, sha256
from vllmdeploy.effects import hub
from vllmdeploy.effects.hub import Progress
from vllmdeploy.effects.hub_modelscope import ModelScope
from vllmdeploy.errors import CommandFailed, UsageError, VllmdeployError
from vllmdeploy.tools.hub import Done, Failed, HubTrouble, Job, Listing, RemoteFile, Wanted

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "sub/vocab.txt": b"a\nb\n",
    "model.safetensors": bytes(range(256)) * 2048,
}


def wanted(server: Hub, repo: str = "owner/model", **changes: Any) -> Wanted:
    base = Wanted(source="huggingface", repo=repo, revision="main", endpoint=server.endpoint)
    return replace(base, **changes)


def listed(what: Wanted, folder: Path) -> Listing:
    return hub.listing(what, environ=dict(os.environ), scratch=folder / ".cache")


def fetched(
    what: Wanted, folder: Path, listing: Listing | None = None
) -> tuple[tuple[Done, ...], list[Progress]]:
    found = listing or listed(what, folder)
    folder.mkdir(exist_ok=True)
    seen: list[Progress] = []
    job = Job(wanted=what, folder=str(folder), commit=found.commit, files=found.files)
    return hub.fetch(job, environ=dict(os.environ), on_progress=seen.append), seen


def test_a_listing_has_the_commit_and_every_hash_that_the_hub_has(tmp_path: Path) -> None:
    with hub_server(owner__model=HubRepo(FILES)) as server:
        found = listed(wanted(server), tmp_path)
    content = FILES["model.safetensors"]
    assert found.commit == COMMIT
    assert found.files == (
        RemoteFile("config.json", 23, git_sha1=git_sha1(FILES["config.json"])),
        RemoteFile("sub/vocab.txt", 4, git_sha1=git_sha1(FILES["sub/vocab.txt"])),
        RemoteFile("model.safetensors", len(content), sha256=sha256(content)),
    )


def test_every_file_arrives_with_its_sha256(tmp_path: Path) -> None:
    with hub_server(owner__model=HubRepo(FILES)) as server:
        done, seen = fetched(wanted(server), tmp_path / "in")
    assert {one.path: one.sha256 for one in done} == {
        path: sha256(content) for path, content in FILES.items()
    }
    assert {path: (tmp_path / "in" / path).read_bytes() for path in FILES} == FILES
    total = sum(map(len, FILES.values()))
    assert (seen[-1].bytes_done, seen[-1].bytes_total) == (total, total)
    assert (seen[-1].files_done, seen[-1].files_total) == (3, 3)


def test_finished_files_are_not_asked_for_again_and_wrong_ones_are(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    with hub_server(owner__model=HubRepo(FILES)) as server:
        fetched(wanted(server), folder)
        (folder / "config.json").write_bytes(b"x" * 23)
        server.asked.clear()
        done, _ = fetched(wanted(server), folder)
        assert server.downloads() == ["config.json"]
    assert {one.path for one in done if one.fetched} == {"config.json"}
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_a_connection_cut_in_the_middle_goes_on(tmp_path: Path) -> None:
    repo = HubRepo(FILES, cut={"model.safetensors": 2})
    with hub_server(owner__model=repo) as server:
        fetched(wanted(server), tmp_path / "in")
    assert repo.cut == {"model.safetensors": 0}
    assert (tmp_path / "in/model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_hub_that_limits_is_asked_again_when_it_says(tmp_path: Path) -> None:
    with hub_server(owner__model=HubRepo(FILES, limited=2)) as server:
        assert listed(wanted(server), tmp_path).commit == COMMIT


def test_content_that_is_not_what_was_listed_is_asked_for_again(tmp_path: Path) -> None:
    repo = HubRepo(FILES, spoiled={"model.safetensors": 1})
    with hub_server(owner__model=repo) as server:
        _, seen = fetched(wanted(server), tmp_path / "in")
    assert (tmp_path / "in/model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert any("what came is not what was listed" in one.waiting for one in seen)


def error_of(what: Wanted, folder: Path) -> VllmdeployError:
    with pytest.raises(VllmdeployError) as raised:
        listed(what, folder)
    return raised.value


def test_a_gated_model_without_a_token_says_so(tmp_path: Path) -> None:
    with hub_server(owner__model=HubRepo(FILES, gated=True, token="hf_right")) as server:
        host = server.endpoint.removeprefix("http://")
        assert str(error_of(wanted(server), tmp_path)) == (
            f"owner/model on {host} is gated, and no token was given\n"
            "  -> accept its terms there, then set HF_TOKEN_FILE to a file with a token"
        )
        assert error_of(wanted(server, token="hf_wrong"), tmp_path).message == (
            f"owner/model on {host} is gated, and the token of HF_TOKEN_FILE may not read it"
        )
        done, _ = fetched(wanted(server, token="hf_right"), tmp_path / "in")
    assert len(done) == 3


def test_a_token_of_the_environment_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with hub_server(owner__model=HubRepo(FILES, gated=True, token="hf_right")) as server:
        assert "no token was given" in error_of(wanted(server), tmp_path).message


def test_what_is_not_there_is_told_apart(tmp_path: Path) -> None:
    repos = {"owner__model": HubRepo(FILES), "owner__data": HubRepo({}, dataset=True)}
    with hub_server(**repos) as server:
        host = server.endpoint.removeprefix("http://")
        missing = error_of(wanted(server, "owner/nothing"), tmp_path)
        assert isinstance(missing, UsageError)
        assert missing.message == f"{host} has no model owner/nothing, or it is private"
        dataset = error_of(wanted(server, "owner/data"), tmp_path)
        assert dataset.message == f"owner/data on {host} is a dataset, not a model"
        revision = error_of(wanted(server, revision="v9"), tmp_path)
        assert revision.message == f"owner/model on {host} has no revision 'v9'"


def test_a_hub_that_nobody_reaches_is_named(tmp_path: Path) -> None:
    with hub_server() as server:
        gone = wanted(server)
    error = error_of(replace(gone, endpoint="http://127.0.0.1:1"), tmp_path)
    assert isinstance(error, CommandFailed)
    assert error.message.startswith("127.0.0.1:1: exit 1: download owner/model\n")


def test_a_revision_that_moved_takes_only_what_changed(tmp_path: Path) -> None:
    repo = HubRepo(dict(FILES))
    folder = tmp_path / "in"
    with hub_server(owner__model=repo) as server:
        fetched(wanted(server), folder)
        repo.commit = "d" * 40
        repo.files["config.json"] = b"{}"
        server.asked.clear()
        found = listed(wanted(server), tmp_path)
        assert found.commit == "d" * 40
        fetched(wanted(server), folder, found)
        assert server.downloads() == ["config.json"]
    assert (folder / "config.json").read_bytes() == b"{}"


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "modelscope.hub.file_download", None)
    what = Wanted(source="modelscope", repo="a/b", revision="master")
    with pytest.raises(HubTrouble) as raised:
        ModelScope(what)
    error = hub.worded(what, Failed(raised.value.trouble, "No module named 'modelscope'"))
    assert error.message == (
        "the library of modelscope is not installed: No module named 'modelscope'"
    )
    assert error.hint == "pip install 'vllmdeploy[modelscope]', or take another source"


def test_a_folder_is_a_source_like_a_hub(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for path, content in {**FILES, ".git/config": b"x"}.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(content)
    (source / "link.txt").symlink_to("config.json")
    what = Wanted(source="folder", repo=str(source), revision="")
    found = listed(what, tmp_path)
    assert (found.faults, [file.path for file in found.files]) == (
        (),
        ["config.json", "link.txt", "model.safetensors", "sub/vocab.txt"],
    )
    fetched(what, tmp_path / "in", found)
    assert (tmp_path / "in/link.txt").read_bytes() == FILES["config.json"]
    assert not (tmp_path / "in/link.txt").is_symlink()
    (source / "steal").symlink_to("/etc/passwd")
    assert listed(what, tmp_path).faults == ("steal: an absolute link, to /etc/passwd",)


def scope(server: Hub, **changes: Any) -> Wanted:
    return wanted(server, source="modelscope", revision="master", **changes)


def test_modelscope_brings_every_file_with_its_sha256(tmp_path: Path) -> None:
    repo = HubRepo(FILES, cut={"model.safetensors": 1})
    with hub_server(owner__model=repo) as server:
        found = listed(scope(server), tmp_path)
        assert found.commit == COMMIT
        assert {file.path: file.sha256 for file in found.files} == {
            path: sha256(content) for path, content in FILES.items()
        }
        fetched(scope(server), tmp_path / "in", found)
    assert {path: (tmp_path / "in" / path).read_bytes() for path in FILES} == FILES


def test_modelscope_brings_other_content_than_listed_once_more(tmp_path: Path) -> None:
    repo = HubRepo(FILES, spoiled={"model.safetensors": 1})
    with hub_server(owner__model=repo) as server:
        fetched(scope(server), tmp_path / "in")
    assert (tmp_path / "in/model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_modelscope_has_no_such_model(tmp_path: Path) -> None:
    with hub_server() as server:
        error = error_of(scope(server), tmp_path)
    host = server.endpoint.removeprefix("http://")
    assert isinstance(error, UsageError)
    assert error.message == f"{host} has no model owner/model, or it is private"
    assert error.hint == "check the name; a private one needs MODELSCOPE_TOKEN_FILE"


def test_modelscope_reads_what_needs_a_login_with_the_token_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms-right")
    with hub_server(owner__model=HubRepo(FILES, gated=True, token="ms-right")) as server:
        host = server.endpoint.removeprefix("http://")
        assert str(error_of(scope(server), tmp_path)) == (
            f"owner/model on {host} is gated, and no token was given\n"
            "  -> accept its terms there, then set MODELSCOPE_TOKEN_FILE to a file with a token"
        )
        assert error_of(scope(server, token="ms-wrong"), tmp_path).message == (
            f"owner/model on {host} is gated, and the token of MODELSCOPE_TOKEN_FILE may not read "
            "it"
        )
        done, _ = fetched(scope(server, token="ms-right"), tmp_path / "in")
    assert len(done) == 3
