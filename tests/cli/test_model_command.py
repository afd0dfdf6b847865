"""`model download`, `list`, `verify`, `remove` on hosts that keep their folders apart."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tests.support.hub_server import COMMIT, Hub, HubRepo, hub_server, sha256
from vllmdeploy.cli.context import World
from vllmdeploy.cli.model import app
from vllmdeploy.config.settings import Settings
from vllmdeploy.core.command import Command
from vllmdeploy.core.command import Result as Answer
from vllmdeploy.core.host import Host
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.effects.shell import OnLine, Shell
from vllmdeploy.errors import (
    CommandFailed,
    HostError,
    HostUnreachable,
    PreflightRefused,
    UsageError,
)

FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": b"1" * 300_000,
    "model-00002-of-00002.safetensors": b"2" * 200_000,
    "pytorch_model.bin": b"other format",
}
KEPT = sorted(set(FILES) - {"pytorch_model.bin"})


class ApartShell:
    """A host of its own on this machine: its MODEL_PATH and its state are folders of its own."""

    def __init__(self, name: str, moved: Mapping[str, str]) -> None:
        self._moved = moved
        self._shell = LocalShell(name)

    @property
    def host(self) -> str:
        return self._shell.host

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Answer:
        argv = command.argv
        for path, own in self._moved.items():
            argv = tuple(word.replace(path, own) for word in argv)
        return self._shell.run(replace(command, argv=argv), on_line=on_line)

    def close(self) -> None:
        """Nothing is held."""


@dataclass
class Fleet:
    """A head, which is this machine, and two hosts beside it."""

    folder: Path
    hub: Hub
    gone: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        return self.folder / "models"

    def root_of(self, host: str) -> Path:
        return self.root if host == "head" else self.folder / f"models-{host}"

    @property
    def services(self) -> Path:
        return self.folder / "state" / "vllm" / "services"

    def model(self, name: str = "model", host: str = "head") -> Path:
        return self.root_of(host) / name

    def connect(
        self, hosts: Sequence[Host], settings: Settings
    ) -> tuple[Mapping[str, Shell], dict[str, HostError]]:
        del settings
        state = {"/var/lib/vllmdeploy": str(self.folder / "state")}
        shells: dict[str, Shell] = {}
        failures: dict[str, HostError] = {}
        for host in hosts:
            if host.name in self.gone:
                failures[host.name] = HostUnreachable(host.name, "no route")
                continue
            name = "head" if host.head else host.name
            shells[host.name] = ApartShell(
                host.name, {str(self.root): str(self.root_of(name)), **state}
            )
        return shells, failures

    def invoke(self, *words: str, as_json: bool = False, answer: str | None = None) -> Result:
        world = World(
            config=self.folder / "config.env",
            json=as_json,
            environ=dict(os.environ),
            connect=self.connect,
        )
        return CliRunner().invoke(app, words, obj=world, catch_exceptions=False, input=answer)

    def run(self, *words: str) -> str:
        result = self.invoke(*words)
        assert result.exit_code == 0, result.output
        return result.stdout

    def document(self, *words: str) -> Any:
        return json.loads(self.invoke(*words, as_json=True).stdout)

    def states(self, name: str = "model") -> list[str]:
        (found,) = [one for one in self.document("list")["models"] if one["model"] == name]
        return [host["state"] for host in found["hosts"].values()]


@pytest.fixture
def fleet(tmp_path: Path) -> Any:
    repos = {"owner__model": HubRepo(dict(FILES)), "owner__other": HubRepo({"a.safetensors": b"1"})}
    with hub_server(**repos) as hub:
        (tmp_path / "nodes.txt").write_text("b ip=10.0.0.2\nc ip=10.0.0.3\n")
        (tmp_path / "config.env").write_text(
            f"MODEL_PATH={tmp_path}/models\nHF_ENDPOINT={hub.endpoint}\n"
            f"WORKER_NODES_FILE={tmp_path}/nodes.txt\nSUDO=never\n"
        )
        yield Fleet(tmp_path, hub)


def copy_to(fleet: Fleet, host: str) -> None:
    os.system(f"cp -a {fleet.root} {fleet.root_of(host)}")


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_model_arrives_whole_and_marked(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    manifest = json.loads((fleet.model() / ".vllmdeploy/MANIFEST.json").read_text())
    assert (manifest["repo"], manifest["commit"]) == ("owner/model", COMMIT)
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == {
        path: sha256(FILES[path]) for path in KEPT
    }
    assert everything_below(fleet.root) == [
        ".incoming/.model.lock",
        *sorted(
            f"model/{path}" for path in (".vllmdeploy/MANIFEST.json", ".vllmdeploy/READY", *KEPT)
        ),
    ]
    text = (fleet.model() / ".vllmdeploy/MANIFEST.json").read_bytes()
    assert (fleet.model() / ".vllmdeploy/READY").read_text() == f"{sha256(text)}\n"


def test_the_plan_is_shown_first_and_a_dry_run_writes_nothing(fleet: Fleet) -> None:
    fleet.root.mkdir()
    shown = fleet.run("download", "owner/model", "--dry-run", "--no-sync").splitlines()
    assert shown[0] == f"owner/model at main ({COMMIT[:12]}) -> {fleet.root}/model"
    assert shown[1] == "  3 files, 488.3 KiB"
    assert shown[2].endswith(" GiB free")
    assert shown[3].startswith("  note: 1 files (12 B) are left out: ")
    assert everything_below(fleet.folder) == ["config.env", "nodes.txt"]


def test_nobody_to_ask_means_that_nothing_is_done(fleet: Fleet) -> None:
    with pytest.raises(UsageError, match="nobody to ask here: nothing was done"):
        fleet.invoke("download", "owner/model", "--no-sync")
    assert not fleet.model().exists()


def test_again_is_nothing_to_do(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    fleet.hub.asked.clear()
    result = fleet.invoke("download", "owner/model", "--no-sync")
    assert result.exit_code == 0
    assert "model is there and ready; nothing to do" in result.stderr
    assert fleet.hub.downloads() == []


def test_an_interrupted_download_goes_on_with_what_is_missing(fleet: Fleet) -> None:
    incoming = fleet.root / ".incoming/model"
    incoming.mkdir(parents=True)
    first, second = KEPT[1:]
    (incoming / first).write_bytes(FILES[first])
    (incoming / second).write_bytes(FILES[second][:1000])
    (incoming / f"{second}.incomplete").write_bytes(b"x")
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    assert sorted(fleet.hub.downloads()) == ["config.json", second]
    assert everything_below(fleet.model())[2:] == KEPT


def test_a_link_in_the_incoming_folder_leads_nowhere(fleet: Fleet) -> None:
    incoming = fleet.root / ".incoming/model"
    incoming.mkdir(parents=True)
    outside = fleet.folder / "outside"
    outside.write_text("mine")
    (incoming / "config.json").symlink_to(outside)
    with pytest.raises(Exception, match="neither a file nor a folder; remove it"):
        fleet.invoke("download", "owner/model", "--yes", "--no-sync")
    assert outside.read_text() == "mine"


def test_another_revision_or_repository_never_goes_into_a_name_that_is_taken(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    with pytest.raises(PreflightRefused, match="model is there already, from owner/model on"):
        fleet.invoke("download", "owner/other", "--name", "model", "--yes", "--no-sync")
    fleet.hub.repos["owner/model"].commit = "d" * 40
    with pytest.raises(PreflightRefused, match="at revision c0ffee000000, and owner/model is at d"):
        fleet.invoke("download", "owner/model", "--yes", "--no-sync")
    fleet.run("download", "owner/other", "--name", "other-2", "--yes", "--no-sync")
    assert fleet.model("other-2").is_dir()


@pytest.mark.parametrize("name", ["..", "a/b", "-rf", "x" * 255, "a\nb"])
def test_a_name_that_leads_elsewhere_is_refused(fleet: Fleet, name: str) -> None:
    for words in (
        ("download", "owner/model", f"--name={name}", "--yes", "--no-sync"),
        ("verify", "--", name),
        ("remove", "--yes", "--", name),
    ):
        with pytest.raises(UsageError, match="cannot be a model's name"):
            fleet.invoke(*words)


def test_the_matrix_tells_every_model_on_every_host(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    copy_to(fleet, "b")
    (fleet.model(host="b") / KEPT[1]).write_bytes(b"short")
    incoming = fleet.root_of("c") / ".incoming/model"
    incoming.mkdir(parents=True)
    (incoming / KEPT[1]).write_bytes(FILES[KEPT[1]])
    fleet.services.mkdir(parents=True)
    spec = {"name": "chat", "argv": ["vllm", "serve", f"{fleet.root}/model"]}
    (fleet.services / "chat.json").write_text(json.dumps(spec))
    shown = fleet.run("list").splitlines()
    assert [line.split("  ") for line in shown][1][-1] == "chat"
    assert " ".join(shown[1].split()) == (
        f"model 488.3 KiB {COMMIT[:12]} ready corrupt partial 59 % chat"
    )
    (found,) = fleet.document("list")["models"]
    assert (found["repo"], found["used_by"]) == ("owner/model", ["chat"])
    assert [host["state"] for host in found["hosts"].values()] == ["ready", "corrupt", "partial"]


def test_a_host_that_is_gone_does_not_hide_the_others(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    fleet.gone = ("b",)
    with pytest.raises(HostUnreachable, match="no route"):
        fleet.invoke("list")


def test_verify_finds_every_flipped_byte_and_takes_the_mark_away(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    copy_to(fleet, "b")
    broken = fleet.model(host="b") / KEPT[2]
    before = broken.stat()
    content = bytearray(broken.read_bytes())
    content[1000] ^= 1
    broken.write_bytes(content)
    os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fleet.states() == ["ready", "ready", "absent"]
    result = fleet.invoke("verify", "model", "--deep")
    assert result.exit_code == 4
    assert result.stdout.splitlines()[1:] == [
        "b: corrupt",
        f"  {KEPT[2]}: other content than the manifest says",
        "c: absent",
    ]
    assert "b: vllmdeploy model verify model --repair" in result.stderr
    assert fleet.states() == ["ready", "unmarked", "absent"]
    with pytest.raises(UsageError, match="--yes"):
        fleet.invoke("verify", "model", "--repair")
    assert fleet.states() == ["ready", "unmarked", "absent"]


def test_a_broken_model_is_mended_by_downloading_it_again(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--include", "*00001*", "--yes", "--no-sync")
    digest = fleet.document("list")["models"][0]["digest"]
    (fleet.model() / KEPT[1]).write_bytes(b"0" * 300_000)
    result = fleet.invoke("verify", "model", "--deep", "--repair")
    assert result.exit_code == 4
    hint = f"vllmdeploy model download owner/model huggingface --revision {COMMIT} --name model"
    assert hint in result.stderr
    fleet.hub.asked.clear()
    fleet.run(*hint.split()[2:], "--yes", "--no-sync")
    assert fleet.hub.downloads() == [KEPT[1]]
    assert fleet.states() == ["ready", "absent", "absent"]
    assert fleet.document("list")["models"][0]["digest"] == digest


def test_a_folder_put_there_by_hand_is_taken_over_and_that_is_said(fleet: Fleet) -> None:
    folder = fleet.model("mine")
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(b"weights")
    (folder / "link.json").symlink_to("model.bin")
    result = fleet.invoke("verify", "mine")
    assert result.exit_code == 0
    assert "mine was put there by hand; its manifest is computed now (2 files, " in result.stderr
    assert "pickled weights (model.bin)" in result.stderr
    assert fleet.states("mine") == ["ready", "absent", "absent"]
    assert "has a manifest already" in fleet.invoke("download", str(folder)).stderr


def test_what_no_model_may_have_is_named_and_nothing_is_taken_over(fleet: Fleet) -> None:
    folder = fleet.model("mine")
    folder.mkdir(parents=True)
    (folder / "steal.json").symlink_to("/etc/passwd")
    with pytest.raises(PreflightRefused, match=r"steal\.json: an absolute link, to /etc/passwd"):
        fleet.invoke("download", str(folder))
    assert everything_below(folder) == ["steal.json"]


def test_a_folder_elsewhere_is_copied(fleet: Fleet) -> None:
    source = fleet.folder / "usb" / "tiny"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_bytes(b"weights")
    (source / "notes.png").write_bytes(b"kept: all of a folder is")
    fleet.run("download", str(source), "--yes", "--no-sync")
    assert everything_below(fleet.model("tiny"))[2:] == ["model.safetensors", "notes.png"]
    assert fleet.document("list")["models"][0]["source"] == "folder"
    (source / "model.safetensors").write_bytes(b"more weights")
    with pytest.raises(PreflightRefused, match="tiny is there already, with other files of some"):
        fleet.invoke("download", str(source), "--yes", "--no-sync")


def test_remove_lists_what_goes_and_then_it_is_gone_everywhere(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    copy_to(fleet, "b")
    shown = fleet.run("remove", "model", "--dry-run").splitlines()
    assert shown[0].endswith(f": remove model model (3 files, 488.3 KiB, in {fleet.root})")
    assert fleet.model().exists()
    fleet.run("remove", "model", "--yes")
    assert fleet.document("list")["models"] == []
    assert not fleet.model(host="b").exists()


def test_a_model_that_a_service_uses_stays(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    fleet.services.mkdir(parents=True)
    spec = {"name": "chat", "env": {"MODEL": f"{fleet.root}/model/config.json"}}
    (fleet.services / "chat.json").write_text(json.dumps(spec))
    with pytest.raises(PreflightRefused, match="model is used by the service chat"):
        fleet.invoke("remove", "model", "--yes")
    assert fleet.model().exists()


def test_a_gated_model_wants_a_token_from_a_file(fleet: Fleet) -> None:
    fleet.hub.repos["owner/model"] = HubRepo(dict(FILES), gated=True, token="hf_secret")
    with pytest.raises(UsageError, match="is gated, and no token was given"):
        fleet.invoke("download", "owner/model", "--yes", "--no-sync")
    (fleet.folder / "token").write_text("hf_secret\n")
    with (fleet.folder / "config.env").open("a") as config:
        config.write(f"HF_TOKEN_FILE={fleet.folder}/token\n")
    result = fleet.invoke("download", "owner/model", "--yes", "--no-sync")
    assert result.exit_code == 0
    assert "hf_secret" not in result.output


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nonsense",), "nonsense is neither OWNER/NAME on a hub nor a folder of this machine"),
        (("/not/there",), "/not/there is neither OWNER/NAME on a hub nor a folder of this"),
        (("owner/model", "ftp"), "ftp: a model comes from huggingface or modelscope"),
        (("owner/model", "--via", "x"), "--via x: only control is known"),
        (("/tmp", "--revision", "main"), "/tmp is a folder, which has no revision"),
    ],
)
def test_what_was_typed_wrong_is_said(fleet: Fleet, words: tuple[str, ...], why: str) -> None:
    with pytest.raises(UsageError) as raised:
        fleet.invoke("download", *words)
    assert raised.value.message.startswith(why)


def test_of_100_flipped_bytes_100_are_found(fleet: Fleet) -> None:
    folder = fleet.model("many")
    folder.mkdir(parents=True)
    for number in range(100):
        (folder / f"{number:03}.safetensors").write_bytes(b"%d" % number * 100)
    fleet.run("verify", "many")
    for file in folder.glob("*.safetensors"):
        before, content = file.stat(), bytearray(file.read_bytes())
        content[before.st_size // 2] ^= 1
        file.write_bytes(content)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert fleet.states("many") == ["ready", "absent", "absent"]
    document = json.loads(fleet.invoke("verify", "many", "--deep", as_json=True).stdout)
    (found, *_) = document["hosts"].values()
    assert found["state"] == "corrupt"
    assert len(found["faults"]) == 100
    shown = fleet.invoke("verify", "many", "--deep").stdout.splitlines()
    assert shown[21] == "  ... and 80 more"


def test_a_model_that_only_a_worker_has_is_held_to_its_own_mark(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    copy_to(fleet, "b")
    os.system(f"rm -r {fleet.model()}")
    result = fleet.invoke("verify", "model", "--deep")
    assert result.exit_code == 0
    assert "has no manifest of model: hosts are held to their own marks only" in result.stderr
    assert result.stdout.splitlines()[1:] == ["b: ready", "c: absent"]


def test_a_manifest_that_cannot_be_read_is_said(fleet: Fleet) -> None:
    fleet.run("download", "owner/model", "--yes", "--no-sync")
    (fleet.model() / ".vllmdeploy/MANIFEST.json").write_text("{}")
    with pytest.raises(UsageError, match=r"MANIFEST\.json: its format is None, and only 1 is"):
        fleet.invoke("verify", "model")
    assert fleet.states() == ["corrupt", "absent", "absent"]


def test_one_document_tells_what_was_downloaded(fleet: Fleet) -> None:
    planned = fleet.document("download", "owner/model", "--dry-run", "--no-sync")
    assert (planned["commit"], planned["bytes"], planned["present"]) == (COMMIT, 500_023, False)
    assert [file["path"] for file in planned["files"]] == KEPT
    done = fleet.document("download", "owner/model", "--yes", "--no-sync")
    assert (done["model"], done["commit"], done["bytes"]) == ("model", COMMIT, 500_023)
    assert fleet.document("download", "owner/model", "--no-sync")["present"]


def test_without_an_answer_about_the_others_the_way_is_told(fleet: Fleet) -> None:
    result = fleet.invoke("download", "owner/model", "--yes")
    assert "to bring it to 2 other hosts: vllmdeploy model sync model" in result.stderr


def test_taking_over_has_a_dry_run_too(fleet: Fleet) -> None:
    folder = fleet.model("mine")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert fleet.run("download", str(folder), "--dry-run").endswith(
        ": mine would be taken over as it is\n"
    )
    assert everything_below(folder) == ["model.safetensors"]


def test_a_model_that_is_a_link_out_of_the_store_is_not_taken_over(fleet: Fleet) -> None:
    elsewhere = fleet.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "model.safetensors").write_bytes(b"weights")
    fleet.root.mkdir()
    fleet.model("mine").symlink_to(elsewhere)
    with pytest.raises(CommandFailed, match="is a link: a model is a folder in"):
        fleet.invoke("verify", "mine")
    assert everything_below(elsewhere) == ["model.safetensors"]


def test_a_host_without_room_refuses_before_anything_is_fetched(fleet: Fleet) -> None:
    fleet.hub.repos["owner/model"].huge = {"model.safetensors": 2**50}
    with pytest.raises(PreflightRefused, match=r"1024\.0 TiB are to come and "):
        fleet.invoke("download", "owner/model", "--yes", "--no-sync")
    assert fleet.hub.downloads() == []
