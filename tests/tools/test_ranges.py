"""Ranges of files between two folders, by the real shell, with a stand-in for ssh in between."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.rig.programs import until
from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.layout import Layout
from vllmdeploy.tools import model_files, ranges, sync_keys
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.ranges import Range
from vllmdeploy.tools.rsync import Keys, Road

MiB = 1024 * 1024
ROAD = Road(ip="10.0.0.1", user="deploy")
CONTENT = random.Random(1).randbytes(20 * MiB + 12345)
PATH = "deep/a b'$(x)"

# What sshd would do with the last word, for a key that is tied to the server.
_SSH = """#!/bin/sh
for word; do :; done
echo $$ >> "$MODELS/../conversations"
SSH_ORIGINAL_COMMAND="$word" exec sh "$SERVE" "$MODELS" /nowhere
"""


@dataclass(frozen=True)
class Scene:
    """Two hosts' model folders; a pull on the second asks the first."""

    folder: Path

    @property
    def source(self) -> Path:
        return self.folder / "one/Tiny"

    @property
    def place(self) -> ModelPlace:
        return ModelPlace(str(self.folder / "two"), "Tiny")

    @property
    def incoming(self) -> Path:
        return Path(self.place.incoming)

    def wanted(self, start: int, end: int, limit_kib_s: int | None = None) -> Range:
        return Range(
            place=self.place,
            number=7,
            path=PATH,
            start=start,
            end=end,
            limit_kib_s=limit_kib_s,
        )

    def lane(self, limit_kib_s: int | None = None) -> Command:
        keys = Keys(private="/k", known_hosts="/h", connections=str(self.folder / "sockets"))
        return ranges.lane(self.place, ROAD, keys, limit_kib_s=limit_kib_s)

    def pull(
        self, start: int, end: int, limit_kib_s: int | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return self.run(self.lane(limit_kib_s), ranges.asked(self.wanted(start, end)))

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}",
            "SERVE": str(self.folder / "serve.sh"),
            "MODELS": str(self.folder / "one"),
        }

    def run(
        self, command: Command, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        given = command.stdin if stdin is None else stdin
        return subprocess.run(
            command.argv, input=given, env=self.env, capture_output=True, timeout=60
        )

    def opened(self, limit_kib_s: int | None = None) -> subprocess.Popen[bytes]:
        """A conversation that goes on."""
        pipe = subprocess.PIPE
        argv = self.lane(limit_kib_s).argv
        return subprocess.Popen(argv, env=self.env, stdin=pipe, stdout=pipe, stderr=pipe)

    def conversations(self) -> list[int]:
        """Their processes, of which each began one with the source."""
        return [int(line) for line in (self.folder / "conversations").read_text().split()]

    def came(self) -> list[tuple[int, int]]:
        look = model_files.look(self.place.root, "Tiny")
        said = self.run(look.command)
        store = look.parse(Result(0, said.stdout.decode()))
        found = store.incoming("Tiny")
        assert found is not None
        return list(found.came.get(PATH, ()))

    def put_together(self) -> str:
        said = self.run(ranges.put_together(self.place, PATH, len(CONTENT)))
        assert said.returncode == 0, said.stderr
        parsed = model_files.parse_hash(said.stdout.decode().strip())
        assert parsed is not None
        return parsed[1]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(_SSH)
    (tmp_path / "bin/ssh").chmod(0o755)
    (tmp_path / "serve.sh").write_bytes(sync_keys.serve_script(Layout("/state")).stdin or b"")
    file = tmp_path / "one/Tiny" / PATH
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    (tmp_path / "two").mkdir()
    return Scene(tmp_path)


def test_a_file_comes_in_ranges_in_any_order_and_is_put_together(scene: Scene) -> None:
    size = len(CONTENT)
    last = scene.pull(16 * MiB, size)
    assert (last.returncode, last.stderr) == (0, b"")
    *steps, end = last.stdout.decode().splitlines()
    assert ranges.progress(steps[-1]) == size - 16 * MiB
    assert ranges.whole(end) == 7
    assert scene.came() == [(16 * MiB, size)]
    assert not (scene.incoming / PATH).exists()
    first = scene.pull(0, 16 * MiB)
    assert first.stdout.endswith(f"came {16 * MiB}\nwhole 7\n".encode())
    assert scene.came() == [(0, size)]
    assert scene.put_together() == hashlib.sha256(CONTENT).hexdigest()
    assert (scene.incoming / PATH).read_bytes() == CONTENT
    assert scene.came() == []
    # A run that was cut after the move does it once more.
    assert scene.put_together() == hashlib.sha256(CONTENT).hexdigest()


def test_a_range_goes_on_where_it_was_cut(scene: Scene) -> None:
    scene.pull(0, 8 * MiB)
    assert scene.run(ranges.where(scene.wanted(0, 16 * MiB))).stdout == f"{8 * MiB}\n".encode()
    rest = scene.pull(0, 16 * MiB)
    assert rest.stdout.endswith(f"came {8 * MiB}\nwhole 7\n".encode())
    assert scene.pull(0, 16 * MiB).stdout == b"whole 7\n"
    assert scene.came() == [(0, 16 * MiB)]


def test_what_a_crash_left_of_the_notes_is_passed_over(scene: Scene) -> None:
    scene.pull(0, 8 * MiB)
    notes = scene.incoming / ranges.CAME / PATH
    notes.write_bytes(b"\0\0\0\n\nx 5\n5\n" + notes.read_bytes() + b"83\0\0")
    assert scene.run(ranges.where(scene.wanted(0, 16 * MiB))).stdout == f"{8 * MiB}\n".encode()
    assert scene.pull(0, 16 * MiB).returncode == 0
    assert scene.put_together() != ""


def test_what_is_growing_is_given_on(scene: Scene) -> None:
    scene.pull(8 * MiB, 16 * MiB)
    third = Scene(scene.folder / "third")
    for name in ("bin", "two"):
        (scene.folder / "third" / name).mkdir(parents=True)
    (third.folder / "bin/ssh").write_text(_SSH)
    (third.folder / "bin/ssh").chmod(0o755)
    (third.folder / "serve.sh").write_bytes((scene.folder / "serve.sh").read_bytes())
    (third.folder / "one").symlink_to(scene.folder / "two")
    assert third.pull(8 * MiB, 16 * MiB).returncode == 0
    grown = third.incoming / ranges.GROWING / PATH
    assert grown.read_bytes()[8 * MiB :] == CONTENT[8 * MiB : 16 * MiB]


def test_a_range_goes_through_another_machine(scene: Scene) -> None:
    one = ModelPlace(str(scene.folder / "one"), "Tiny")
    wanted = scene.wanted(16 * MiB, len(CONTENT))
    given = scene.run(ranges.give(one, wanted, 16 * MiB)).stdout
    assert given == CONTENT[16 * MiB :]
    assert scene.run(ranges.take(wanted, 16 * MiB), given).returncode == 0
    assert scene.came() == [(16 * MiB, len(CONTENT))]
    assert scene.run(ranges.take(scene.wanted(0, MiB), 0), b"short").returncode == 1


def test_a_source_that_is_shorter_says_so_and_nothing_is_noted(scene: Scene) -> None:
    (scene.source / PATH).write_bytes(CONTENT[: 9 * MiB])
    said = scene.pull(8 * MiB, 16 * MiB)
    assert said.returncode == 1
    assert ranges.SHORT in said.stderr.decode()
    assert scene.came() == []


def test_a_limit_is_kept(scene: Scene) -> None:
    began = time.monotonic()
    assert scene.pull(0, MiB, limit_kib_s=1024).returncode == 0
    assert time.monotonic() - began > 0.9
    assert scene.came() == [(0, MiB)]


def test_a_range_that_another_run_still_writes_is_ended_first(scene: Scene) -> None:
    pulls = scene.incoming / ".vllmdeploy/pulls"
    pulls.mkdir(parents=True)
    with subprocess.Popen(("sleep", "30"), cwd=scene.incoming) as writer:
        (pulls / "7.pid").write_text(f"{writer.pid}\n")
        assert scene.pull(0, MiB).returncode == 0
        assert writer.wait(10) != 0
    assert list(pulls.iterdir()) == []


def test_one_conversation_brings_range_after_range(scene: Scene) -> None:
    other = replace(scene.wanted(0, 9), number=8, path="x y ")
    (scene.source / "x y ").write_bytes(b"nine bytes and more")
    first, last = scene.wanted(0, 16 * MiB), scene.wanted(16 * MiB, len(CONTENT))
    with scene.opened() as one:
        assert one.stdin is not None
        assert one.stdout is not None
        for wanted in (last, other, first):
            one.stdin.write(ranges.asked(wanted))
            one.stdin.flush()
            while ranges.whole(one.stdout.readline().decode().strip()) is None:
                pass
        one.stdin.close()
        assert one.wait(10) == 0
    assert len(scene.conversations()) == 1
    assert scene.put_together() == hashlib.sha256(CONTENT).hexdigest()
    grown = scene.incoming / ranges.GROWING / "x y "
    assert grown.read_bytes() == b"nine byte"
    assert list((scene.incoming / ".vllmdeploy/pulls").iterdir()) == []
    assert list((scene.folder / "sockets").iterdir()) == []


@pytest.mark.parametrize("who", ["asker", "lane", "source"])
def test_when_one_of_them_is_killed_all_end(scene: Scene, who: str) -> None:
    with scene.opened() as one:
        assert one.stdin is not None
        assert one.stdout is not None
        one.stdin.write(ranges.asked(scene.wanted(0, MiB)))
        one.stdin.flush()
        while ranges.whole(one.stdout.readline().decode().strip()) is None:
            pass
        (source,) = scene.conversations()
        if who == "asker":
            one.stdin.close()
        elif who == "lane":
            children = Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split()
            for pid in map(int, children):
                if pid != source:
                    os.kill(pid, signal.SIGKILL)
        else:
            os.kill(source, signal.SIGKILL)
            one.stdin.write(ranges.asked(scene.wanted(MiB, 2 * MiB)))
            one.stdin.close()
        assert (one.wait(10) == 0) == (who == "asker")
    until("the source's end", lambda: not Path(f"/proc/{source}").exists(), limit_s=10)
    assert scene.came() == [(0, MiB)]


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("vllmdeploy-ranges Tiny", "0 5 ../Other/secret"),
        ("vllmdeploy-ranges Tiny", "0 5 /etc/passwd"),
        ("vllmdeploy-ranges Tiny", "0 5 deep/../../Other/secret"),
        ("vllmdeploy-ranges Tiny", "0 5 out"),
        ("vllmdeploy-ranges Tiny", "0 5 none"),
        ("vllmdeploy-ranges Tiny", "0 5 deep"),
        ("vllmdeploy-ranges Tiny", "0 5 "),
        ("vllmdeploy-ranges Tiny", "1 5 x"),
        ("vllmdeploy-ranges Tiny", "08 5 x"),
        ("vllmdeploy-ranges Tiny", "0 99999999999999999999 x"),
        ("vllmdeploy-ranges Tiny", "0 $(id) x"),
        ("vllmdeploy-ranges Tiny", "0  x"),
        ("vllmdeploy-ranges Tiny", "0 x"),
        ("vllmdeploy-ranges Tiny", "x"),
        ("vllmdeploy-ranges Tiny", ""),
        ("vllmdeploy-ranges Tiny", "0 6 x"),
        ("vllmdeploy-ranges ..", "0 5 one/Tiny/x"),
        ("vllmdeploy-ranges ../one", "0 5 x"),
        ("vllmdeploy-ranges Link", "0 5 secret"),
        ("vllmdeploy-ranges Tiny 0 5", "0 5 x"),
        ("vllmdeploy-ranges", "0 5 x"),
    ],
)
def test_nothing_but_ranges_of_a_models_own_files_is_given(
    scene: Scene, words: str, asked: str
) -> None:
    (scene.source / "x").write_bytes(b"fives")
    (scene.folder / "one/Other").mkdir()
    (scene.folder / "one/Other/secret").write_bytes(b"secret")
    (scene.source / "out").symlink_to("../Other/secret")
    (scene.folder / "one/Link").symlink_to("Other")
    serve = ("sh", str(scene.folder / "serve.sh"), str(scene.folder / "one"), "/nowhere")

    def ask(words: str, asked: str) -> subprocess.CompletedProcess[bytes]:
        env = {"PATH": os.environ["PATH"], "SSH_ORIGINAL_COMMAND": words}
        return subprocess.run(serve, input=f"{asked}\n".encode(), env=env, capture_output=True)

    assert ask("vllmdeploy-ranges Tiny", "0 5 x\n0 3 x").stdout == b"fivesfiv"
    refused = ask(words, asked)
    assert (refused.returncode, refused.stdout) == (1, b"")
    assert b"vllmdeploy: refused" in refused.stderr


def test_a_model_that_gets_its_name_meanwhile_is_given_on(scene: Scene) -> None:
    incoming = scene.folder / "one/.incoming"
    incoming.mkdir()
    (scene.folder / "one/Tiny").rename(incoming / "Tiny")
    with scene.opened() as one:
        assert one.stdin is not None
        assert one.stdout is not None
        for number in range(2):
            wanted = scene.wanted(number * MiB, (number + 1) * MiB)
            one.stdin.write(ranges.asked(wanted))
            one.stdin.flush()
            while ranges.whole(one.stdout.readline().decode().strip()) is None:
                pass
            if number == 0:
                (incoming / "Tiny").rename(scene.folder / "one/Tiny")
        one.stdin.close()
        assert one.wait(10) == 0
    assert scene.came() == [(0, 2 * MiB)]


def test_a_path_with_a_newline_is_not_a_second_question(scene: Scene) -> None:
    with pytest.raises(ValueError, match="two lines"):
        ranges.asked(replace(scene.wanted(0, 5), path="none\nx"))


def test_the_writer_itself_is_ended_by_the_next_one(scene: Scene) -> None:
    with scene.opened(limit_kib_s=1024) as first:
        assert first.stdin is not None
        first.stdin.write(ranges.asked(scene.wanted(0, 16 * MiB)))
        first.stdin.flush()
        assert first.stdout is not None
        first.stdout.readline()
        assert scene.pull(0, 16 * MiB).returncode == 0
        assert first.wait(10) != 0
    assert scene.came() == [(0, 16 * MiB)]


def test_what_came_before_a_kill_is_noted_and_a_silent_source_is_let_go(scene: Scene) -> None:
    (scene.folder / "serve.sh").write_text("head -c 5000000 /dev/zero; exec sleep 60\n")
    whole_blocks = 5_000_000 // 65536 * 65536
    with scene.opened() as one:
        assert one.stdin is not None
        one.stdin.write(ranges.asked(scene.wanted(0, 16 * MiB)))
        one.stdin.flush()
        assert one.stdout is not None
        assert one.stdout.readline() == f"came {whole_blocks}\n".encode()
        taker = (scene.incoming / ".vllmdeploy/pulls/7.pid").read_text().strip()
        subprocess.run(("pkill", "-KILL", "-P", taker, "-x", "dd"), check=True)
        assert one.wait(10) == 1
        assert one.stderr is not None
        assert f"0 bytes of {PATH} came instead of {16 * MiB}" in one.stderr.read().decode()
    assert scene.came() == [(0, whole_blocks)]
    assert list((scene.incoming / ".vllmdeploy/pulls").iterdir()) == []
