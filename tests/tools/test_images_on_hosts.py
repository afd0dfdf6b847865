"""Images as engines of both kinds of store tell of them, and when two are the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.docker import fake_docker, inspected
from vllmdeploy.core.command import Result
from vllmdeploy.tools import images
from vllmdeploy.tools.images import Held, Image, Store


def test_an_image_is_read() -> None:
    said = inspected(
        id="sha256:" + "ab" * 32,
        arch="amd64",
        user="vllm",
        layers=["sha256:1"],
        environment=["PATH=/bin", "PYTHONPATH=/opt/a:/opt/b"],
        labels={"k": "v"},
    )
    fact = images.image("-evil")
    assert fact.command.argv[-1] == "-evil"
    found = fact.parse(Result(0, json.dumps(said) + "\n")).image
    assert found is not None
    assert replace(found, content="") == Image(
        id="sha256:" + "ab" * 32,
        arch="amd64",
        user="vllm",
        layers=("sha256:1",),
        python_path="/opt/a:/opt/b",
        labels={"k": "v"},
    )
    assert found.short == "abababababab"


@pytest.mark.parametrize(
    "said",
    [
        inspected(id="i", arch=None, user=None, layers=None, environment=None),
        {"Id": "i", "Config": {}},
        {"Id": "i", "Config": None, "RootFS": {"Type": "layers"}},
    ],
)
def test_an_image_without_settings_is_read_too(said: dict[str, Any]) -> None:
    found = images.image("x").parse(Result(0, json.dumps(said))).image
    assert found is not None
    assert replace(found, content="") == Image(id="i", arch="")


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (Result(1, "[]\n", "Error response from daemon: No such image: x"), ""),
        (Result(1), ""),  # not asked, since nothing else of Docker answers
        (
            Result(1, "", 'template: :1:70: <.Config.User>: no entry for key "User"'),
            'docker image inspect: template: :1:70: <.Config.User>: no entry for key "User"',
        ),
        (Result(124, timed_out=True), "`docker image inspect` hangs"),
    ],
)
def test_only_dockers_own_no_means_that_an_image_is_not_there(result: Result, problem: str) -> None:
    assert images.image("x").parse(result) == Held(problem=problem)


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (Result(0, "{}"), ""),
        (Result(1, "", "no such manifest: docker.io/x:1"), "no such manifest: docker.io/x:1"),
        (Result(1, "", "unauthorized: denied"), "unauthorized: denied"),
        (Result(1, "", "dial tcp: i/o timeout"), ""),
        (Result(124, timed_out=True), ""),
        (Result(127, "", "docker: not found"), ""),
    ],
)
def test_only_the_registrys_own_no_counts(result: Result, reason: str) -> None:
    assert images.offer("x:1").parse(result) == images.Offer(refusal=reason)


def shown(id_: str, **changes: Any) -> str:
    said: dict[str, Any] = {
        "id": id_,
        "arch": "amd64",
        "user": "",
        "layers": ["sha256:base", "sha256:ray"],
        "environment": ["PATH=/bin"],
        "labels": None,
        "command": ["bash"],
        "entrypoint": None,
        "folder": "",
        "references": ["vllm:1"],
        "size": 5,
    }
    return json.dumps(inspected(**{**said, **changes}))


def read(text: str) -> Image:
    found = images.image("x").parse(Result(0, text)).image
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({}, True),
        ({"labels": {}, "entrypoint": [], "user": None, "references": [], "size": 9}, True),
        ({"layers": ["sha256:base"]}, False),
        ({"layers": []}, False),
        ({"environment": ["PATH=/usr/bin"]}, False),
        ({"command": ["sh"]}, False),
        ({"folder": "/app"}, False),
        ({"arch": "arm64"}, False),
    ],
)
def test_two_stores_give_one_image_two_ids(changes: dict[str, Any], same: bool) -> None:
    ours = read(shown("sha256:config"))
    assert ours.same_as(read(shown("sha256:manifest", **changes))) is same
    assert ours.same_as(read(shown("sha256:config", **changes)))


CLASSIC = '{"driver":[["Backing Filesystem","extfs"]],"root":"/var/lib/docker"}'
CONTAINERD = '{"driver":[["driver-type","io.containerd.snapshotter.v1"]],"root":"/var/lib/docker"}'
ID = "sha256:" + "ab" * 32


def test_a_store_is_read() -> None:
    said = f'{CLASSIC}\n{{"free":2}}\n{shown(ID)}\n{shown("sha256:2", references=None)}\n'
    store = images.STORE.parse(Result(0, said))
    assert [one.id for one in store.images] == [ID, "sha256:2"]
    assert (store.kind, store.free_bytes, store.shares_layers) == ("docker", 2048, True)
    assert store.layers == {"sha256:base", "sha256:ray"}


def test_containerd_keeps_no_layers_that_an_archive_could_leave_out() -> None:
    store = images.STORE.parse(Result(0, f"{CONTAINERD}\n"))
    assert store == Store(kind="containerd")
    assert not store.shares_layers


@pytest.mark.parametrize(
    ("reference", "found"),
    [
        ("vllm:1", True),
        ("vllm", False),
        ("latest-only", True),
        (ID, True),
        ("abababababab", True),
        ("ababababab", False),
        ("", False),
        ("sha256:", False),
    ],
)
def test_an_image_is_found_by_its_names_and_its_id(reference: str, found: bool) -> None:
    image = read(shown(ID, references=["vllm:1", "latest-only:latest"]))
    assert Store(images=(image,)).find(reference) == (image if found else None)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (Result(1, "", "Cannot connect"), "its images are not told: Cannot connect"),
        (Result(0, "nonsense\n"), "its images are not told: nonsense"),
        (Result(1, CLASSIC + "\n", "Error: No such image: x"), ""),
        (
            Result(1, CLASSIC + "\n", "i/o error"),
            "its images are not told: i/o error",
        ),
    ],
)
def test_a_store_that_does_not_answer_says_why(result: Result, problem: str) -> None:
    assert images.STORE.parse(result).problem == problem


def test_a_store_is_asked_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_text(shown(ID) + "\n", "utf-8")
    root = json.dumps(str(tmp_path))
    text = f"""case "$1 $2" in
    "info --format") echo '{{"driver":[],"root":{root}}}' ;;
    "image ls") printf '{ID}\n{ID}\n' ;;
    "image inspect") [ $# = 5 ] && cat {tmp_path}/one ;;
    esac"""
    shell = fake_docker(tmp_path, text, monkeypatch)
    store = images.STORE.parse(shell.run(images.STORE.command))
    assert ([one.id for one in store.images], store.problem) == ([ID], "")
    assert store.free_bytes


DIGESTS = ["sha256:" + letter * 64 for letter in "abc"]


def manifest(digest: str, **platform: str) -> dict[str, Any]:
    described: dict[str, Any] = {"digest": digest, "size": 528}
    return {"Ref": "x:1", "Descriptor": {**described, "platform": platform} if platform else {}}


@pytest.mark.parametrize(
    ("shown", "digests"),
    [
        (
            [
                manifest(DIGESTS[0], architecture="amd64", os="linux"),
                manifest(DIGESTS[1], architecture="arm64", os="linux", variant="v8"),
                manifest(DIGESTS[2], architecture="unknown", os="unknown"),
            ],
            {"amd64": DIGESTS[0], "arm64": DIGESTS[1], "unknown": DIGESTS[2]},
        ),
        (manifest(DIGESTS[0], architecture="amd64", os="linux"), {"amd64": DIGESTS[0]}),
        (manifest("sha256:$(touch ran)", architecture="amd64"), {}),
        (manifest(DIGESTS[0]), {}),
        ([1, None, "x"], {}),
        (None, {}),
    ],
)
def test_a_registry_says_what_it_would_give_to_which_machine(
    shown: object, digests: dict[str, str]
) -> None:
    assert images.offer("x:1").parse(Result(0, json.dumps(shown))) == images.Offer(digests)
    assert images.Offer(digests).digest("s390x") == ""


@pytest.mark.parametrize(
    ("reference", "pinned"),
    [
        ("vllm/vllm-openai:v1", "vllm/vllm-openai@sha256:1"),
        ("reg:5000/x", "reg:5000/x@sha256:1"),
        ("reg:5000/a/x:2", "reg:5000/a/x@sha256:1"),
        ("x@sha256:0", "x@sha256:1"),
    ],
)
def test_a_name_is_pinned_without_its_tag(reference: str, pinned: str) -> None:
    assert images.by_digest(reference, "sha256:1") == pinned


def test_what_a_registry_called_it_is_found_under_dockers_short_names() -> None:
    image = read(shown(ID, digests=["other@sha256:0", "x@sha256:1", "reg:5000/x@sha256:2"]))
    assert image.digest_of("docker.io/library/x:9") == "sha256:1"
    assert image.digest_of("reg:5000/x") == "sha256:2"
    assert image.digest_of("y:1") == ""
