"""`image list`, `push`, `build` on hosts that pretend: lines and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.docker import inspected
from tests.support.scripted_hosts import ScriptedFleet, ScriptedHost
from vllmdeploy.cli.app import main
from vllmdeploy.cli.context import World
from vllmdeploy.errors import HostUnreachable

CONFIG = "sha256:" + "c" * 64
MANIFEST = "sha256:" + "d" * 64


@dataclass
class Said:
    code: int
    out: str
    err: str


Run = Callable[..., Said]


def image(id_: str, *references: str, layers: tuple[str, ...] = ("sha256:a", "sha256:b")) -> str:
    return json.dumps(
        inspected(
            id=id_,
            arch="amd64",
            layers=layers,
            environment=["PATH=/bin"],
            references=references,
            size=3 * 1024 * 1024,
        )
    )


def engine(host: ScriptedHost, *images: str, store: str = "overlay2") -> None:
    """What its Docker has."""
    (host.folder / "images").write_text("".join(f"{one}\n" for one in images), "utf-8")
    driver = json.dumps({"driver": [["driver-type", store]], "root": "/"})
    host.program(
        "docker",
        f"""#!/bin/sh
home=${{0%/bin/docker}}
echo "docker $*" | tr '\\n' ' ' >> "$home/history"; echo >> "$home/history"
case "$1 $2" in
  version*) echo '{{"version":"28.2.2","arch":"amd64","parts":[{{"Name":"Engine"}}]}}' ;;
  info*) echo '{driver}' ;;
  "image ls") cat "$home/images" ;;
  "image inspect") cat "$home/images" ;;
  "run --rm") cat "$home/contents" ;;
esac
""",
    )


def audit(fleet: ScriptedFleet) -> list[dict[str, object]]:
    """What the head's log has; empty where it has none."""
    log = fleet["gpu-01"].state / "audit.log"
    lines = log.read_text("utf-8").splitlines() if log.exists() else []
    return [json.loads(line) for line in lines]


def changes(host: ScriptedHost) -> list[str]:
    return [line for line in host.changes if not line.startswith("docker info")]


@pytest.fixture
def fleet(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedFleet:
    monkeypatch.chdir(open_folder)
    Path("config.env").write_text(
        "HEAD_HOST=gpu-01\nIMAGE=vllm:1\nACCELERATOR=cpu\nMODEL_PATH=/data/models\n", "utf-8"
    )
    Path("worker_nodes.txt").write_text("gpu-01 head=yes\ngpu-02\n", "utf-8")
    fleet = ScriptedFleet(open_folder, "gpu-01", "gpu-02")
    engine(fleet["gpu-01"], image(CONFIG, "vllm:1"))
    engine(fleet["gpu-02"], image(MANIFEST, "vllm:1"), store="io.containerd.snapshotter.v1")
    return fleet


@pytest.fixture
def run(fleet: ScriptedFleet, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*argv: str) -> Said:
        code = 0
        try:
            main(["image", *argv], World(connect=fleet.connect))
        except SystemExit as ended:
            code = int(ended.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


def test_one_image_in_two_kinds_of_store_is_one_image(fleet: ScriptedFleet, run: Run) -> None:
    said = run("list")
    assert said.out.splitlines() == [
        "IMAGE   HOST    GROUP    IDENTITY      SIZE     STORE",
        "vllm:1  gpu-01  default  cccccccccccc  3.0 MiB  docker",
        "vllm:1  gpu-02  default  cccccccccccc  3.0 MiB  containerd",
    ]
    assert said.code == 0
    lines = json.loads(run("list", "--json").out)["images"]
    assert [line["id"] for line in lines] == [CONFIG, MANIFEST]


def test_a_host_whose_engine_does_not_tell_is_shown_with_the_reason(
    fleet: ScriptedFleet, run: Run
) -> None:
    fleet["gpu-02"].program("docker", "#!/bin/sh\necho 'Cannot connect' >&2\nexit 1\n")
    said = run("list")
    assert "gpu-02" in said.out.splitlines()[1]
    assert "its images are not told: Cannot connect" in said.out.splitlines()[1]


def test_what_is_everywhere_is_not_moved(fleet: ScriptedFleet, run: Run) -> None:
    said = run("push", "--yes")
    assert (said.code, said.err.splitlines()[-1]) == (0, "vllm:1 is on 2 hosts (0 B received)")
    assert changes(fleet["gpu-02"]) == []
    assert audit(fleet) == []


def test_a_host_that_has_it_under_another_name_gets_the_name(
    fleet: ScriptedFleet, run: Run
) -> None:
    engine(fleet["gpu-02"], image(CONFIG, "other:1"))
    assert run("push", "--dry-run").out == (
        f"# gpu-02: tag image vllm:1 (there under another name)\ndocker tag {CONFIG} vllm:1\n"
    )
    said = run("push", "vllm:1", "--yes", "--json")
    assert said.code == 0, said.err
    document = json.loads(said.out)
    assert (document["from"], document["done"]) == ("gpu-01", ["gpu-02"])
    assert f"docker tag {CONFIG} vllm:1 " in fleet["gpu-02"].docker
    (line,) = audit(fleet)
    assert (line["what"], line["done"], line["failed"]) == ("image push vllm:1", 1, 0)


def test_a_dry_run_shows_how_the_layers_that_are_lacking_would_come(
    fleet: ScriptedFleet, run: Run
) -> None:
    engine(fleet["gpu-02"], image(MANIFEST, "base:1", layers=("sha256:a",)))
    headings = [
        line for line in run("push", "--dry-run").out.splitlines() if line.startswith("# gpu-")
    ]
    lacks = "image vllm:1 (1 of 2 layers are not there)"
    assert headings[-4:] == [
        "# gpu-01: take apart image vllm:1 (lacking on gpu-02)",
        f"# gpu-02: receive {lacks}",
        f"# gpu-02: load {lacks}",
        f"# gpu-02: tag {lacks}",
    ]
    assert changes(fleet["gpu-02"]) == []


def test_an_image_for_other_machines_is_not_pushed_to_them(fleet: ScriptedFleet, run: Run) -> None:
    arm = image(CONFIG, "vllm:1").replace("amd64", "arm64")
    engine(fleet["gpu-01"], arm)
    engine(fleet["gpu-02"])
    said = run("push", "--yes")
    assert said.code == 6
    assert "gpu-02: the image is built for arm64, the host is amd64" in said.err


def test_only_hosts_that_are_to_have_it_must_be_there(fleet: ScriptedFleet, run: Run) -> None:
    fleet.failures["gpu-02"] = HostUnreachable("gpu-02", "no route to host")
    assert run("push", "--to", "gpu-01", "--yes").code == 0
    said = run("push", "--yes")
    assert (said.code, "gpu-02: no route to host" in said.err) == (3, True)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("push", "nothing:1", "--yes"), "no host has an image nothing:1"),
        (("push", "--to", "gpu-09", "--yes"), "--to gpu-09: no host and no group"),
        (("build", "--wheels", "nowhere"), "--wheels nowhere: no such folder"),
        (("build", "--wheels", "."), "--wheels .: it holds no .whl files"),
        (("build", "--on", "gpu-09"), "--on gpu-09: no such host"),
        (
            ("build", "--extra-index", "https://me:secret@pkg.example/simple"),
            "--extra-index: whoever has the image could read the password in it",
        ),
        (
            ("build", "--index", "https://me:secret@pkg.example/simple"),
            "--index: whoever has the image could read the password in it",
        ),
    ],
)
def test_what_is_mistyped_is_refused_in_words(run: Run, argv: tuple[str, ...], words: str) -> None:
    said = run(*argv)
    assert said.code == 2
    assert words in said.err


def contents(host: ScriptedHost, **versions: str) -> None:
    said = {"python": "3.12.3", "ray": "", "vllm": "0.33.0", "uid": 0, "gid": 0, **versions}
    (host.folder / "contents").write_text(json.dumps(said) + "\n", "utf-8")


def test_a_build_is_shown_with_all_that_decides_it(fleet: ScriptedFleet, run: Run) -> None:
    contents(fleet["gpu-01"])
    said = run("build", "--dry-run")
    assert said.out == (
        "# gpu-01: build image vllmdeploy/vllm:1-ray2.60.0 (Ray 2.60.0 from the package index)\n"
        "docker build --force-rm --tag vllmdeploy/vllm:1-ray2.60.0"
        " --network host --file Dockerfile.ray"
        " --build-arg BASE=vllm:1 --build-arg RAY=2.60.0"
        f" --label vllmdeploy.image.base={CONFIG} --label vllmdeploy.image.ray=2.60.0"
        " --label vllmdeploy.image.vllm=0.33.0 --label vllmdeploy.image.python=3.12.3 -\n"
    )
    Path("wheels").mkdir()
    Path("wheels/ray-2.60.0-cp312-cp312-manylinux2014_x86_64.whl").touch()
    offline = run("build", "--wheels", "wheels", "--dry-run").out
    assert "(Ray 2.60.0 from 1 wheels, no network)" in offline
    assert "--network none" in offline
    both = ("--index", "https://a.example/simple", "--extra-index", "https://b.example/cpu")
    indexes = "PIP_INDEX_URL=https://a.example/simple --build-arg PIP_EXTRA_INDEX_URL=https://b.example/cpu"
    assert f"--build-arg {indexes} --label" in run("build", *both, "--dry-run").out


def test_an_image_without_vllm_is_not_built_on(fleet: ScriptedFleet, run: Run) -> None:
    contents(fleet["gpu-01"], vllm="")
    said = run("build", "--yes")
    assert said.code == 6
    assert "image vllm:1 has no vLLM" in said.err
