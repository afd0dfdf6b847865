"""The words of rsync and tar between hosts, and what rsync answers."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vllmdeploy.core.command import Command
from vllmdeploy.tools import rsync
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.rsync import Keys, Pull, Road

PLACE = ModelPlace("/models", "Tiny")
ROAD = Road(ip="10.0.0.1", user="deploy", port=2222)
KEYS = Keys(private="/state/key", known_hosts="/state/known", connections="/state/ssh")


def pull(**changes: object) -> Command:
    wanted = {"place": PLACE, "number": 7, "paths": ("a b", "d/c"), "size": 100_000_000, **changes}
    return rsync.pull(Pull(**wanted), ROAD, KEYS)  # type: ignore[arg-type]  # a test's shorthand


def test_a_pull_names_everything_but_the_files_which_come_on_stdin() -> None:
    command = pull()
    assert command.argv[4:] == (
        "/models/.incoming/Tiny",
        "7",
        rsync.transport(ROAD, KEYS),
        "/state/ssh",
        "--inplace",
        "--append-verify",
        "--copy-links",
        "--info=progress2,stats1",
        "--no-human-readable",
        "--outbuf=L",
        "--timeout=20",
        "-e",
        """sh -c 'cd / && eval "exec $VLLMDEPLOY_SSH \\"\\$@\\""' ssh""",
        "10.0.0.1:Tiny/",
    )
    assert command.stdin == b"a b\nd/c\n"
    assert command.root


def test_a_doubted_piece_is_compared_as_a_whole_and_may_be_silent_for_longer() -> None:
    argv = pull(checksum=True).argv
    assert "--checksum" in argv
    assert "--append-verify" not in argv
    assert "--timeout=22" in argv


def test_a_limit_is_given_to_rsync() -> None:
    assert "--bwlimit=512" in pull(limit_kib_s=512).argv


def test_ssh_trusts_the_given_host_keys_only_and_forwards_nothing() -> None:
    assert rsync.transport(ROAD, KEYS) == (
        "ssh -F /dev/null -i /state/key -p 2222 -l deploy -o BatchMode=yes -o IdentitiesOnly=yes"
        " -o StrictHostKeyChecking=yes -o UserKnownHostsFile=/state/known"
        " -o GlobalKnownHostsFile=/dev/null -o HostKeyAlias=10.0.0.1 -o ClearAllForwardings=yes"
        " -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
        " -o Ciphers=aes128-gcm@openssh.com,aes256-gcm@openssh.com,chacha20-poly1305@openssh.com,"
        "aes256-ctr,aes128-ctr -o LogLevel=ERROR"
    )


def test_a_connection_is_left_for_the_next_pull_that_names_it() -> None:
    def socket(connection: str, **changes: str) -> str:
        words = rsync.transport(ROAD, replace(KEYS, **changes), connection)
        return words.partition("ControlPath=")[2].partition(" ")[0]

    first = socket("a b 0")
    assert re.fullmatch("/state/ssh/[0-9a-f]{16}", first)
    assert socket("a b 0") == first != socket("a b 1")
    # No socket can be made there.
    assert socket("a b 0", connections="/state/" + 80 * "x") == ""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("     33,554,432  45%", None),
        ("       33554432  45%   11.20MB/s    0:00:05 (xfr#1, to-chk=0/1)", 33554432),
        ("              0   0%    0.00kB/s    0:00:00  ", 0),
        ("moved", None),
    ],
)
def test_progress_is_read_from_rsyncs_lines(line: str, expected: int | None) -> None:
    assert rsync.progress(line) == expected


def test_what_came_over_the_wire_is_read_from_its_last_words() -> None:
    assert rsync.received("sent 50 bytes  received 1089 bytes  278.00 bytes/sec") == 1089
    assert rsync.received("total size is 1  speedup is 0.01") is None


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("rsync  version 3.5.0  protocol version 32", True),
        ("rsync  version v3.1.3  protocol version 31", True),
        ("rsync  version 3.0.9  protocol version 30", False),
        ("openrsync: protocol version 29", False),
        ("", False),
    ],
)
def test_an_rsync_without_its_newer_words_is_not_used(version: str, expected: bool) -> None:
    assert rsync.usable(version) is expected


def run(command: Command, **more: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command.argv, input=more.get("stdin", command.stdin), capture_output=True)


def test_a_file_goes_on_where_it_ends(tmp_path: Path) -> None:
    (tmp_path / "Tiny").mkdir()
    (tmp_path / "Tiny/a b").write_bytes(b"0123456789")
    place = ModelPlace(str(tmp_path), "Tiny")
    rest = run(rsync.send_file(place, "a b", 4)).stdout
    assert rest == b"456789"
    incoming = tmp_path / ".incoming/Tiny"
    incoming.mkdir(parents=True)
    (incoming / "d").mkdir()
    (incoming / "d/a b").write_bytes(b"0123")
    assert run(rsync.size_of(place, "d/a b")).stdout == b"4\n"
    assert run(rsync.size_of(place, "none")).stdout == b"0\n"
    run(rsync.take_file(place, "d/a b", 4), stdin=rest)
    assert (incoming / "d/a b").read_bytes() == b"0123456789"
    run(rsync.take_file(place, "d/a b", 0), stdin=b"anew")
    assert (incoming / "d/a b").read_bytes() == b"anew"


def test_many_files_go_as_one_stream_and_links_become_files(tmp_path: Path) -> None:
    source = tmp_path / "Tiny"
    (source / "d").mkdir(parents=True)
    (source / "d/x").write_bytes(b"x")
    (source / "y").symlink_to("d/x")
    incoming = tmp_path / ".incoming/Tiny"
    incoming.mkdir(parents=True)
    place = ModelPlace(str(tmp_path), "Tiny")
    stream = run(rsync.send_files(place, ("d/x", "y"))).stdout
    run(rsync.take_files(place), stdin=stream)
    assert (incoming / "d/x").read_bytes() == (incoming / "y").read_bytes() == b"x"
    assert not (incoming / "y").is_symlink()


def test_a_sweep_ends_what_still_writes_and_removes_its_temporary_files(tmp_path: Path) -> None:
    place = ModelPlace(str(tmp_path), "Tiny")
    pulls = tmp_path / ".incoming/Tiny/.vllmdeploy/pulls"
    pulls.mkdir(parents=True)
    incoming = tmp_path / ".incoming/Tiny"
    (incoming / ".model.safetensors.G3iCvA").write_bytes(b"half")
    (incoming / "model.safetensors").write_bytes(b"half")
    with subprocess.Popen(("sleep", "600"), cwd=incoming) as writer:
        (pulls / "0.pid").write_text(f"{writer.pid}\n")
        (pulls / "1.pid").write_text(f"{os.getpid()}\n")
        assert run(rsync.sweep(place)).returncode == 0
        assert writer.wait(10) != 0
    assert sorted(path.name for path in incoming.iterdir()) == [".vllmdeploy", "model.safetensors"]
    assert list((incoming / ".vllmdeploy").iterdir()) == []


def test_a_sweep_does_not_follow_a_link_out_of_the_model_folder(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".precious.abcdef").write_bytes(b"mine")
    (tmp_path / "models/.incoming").mkdir(parents=True)
    (tmp_path / "models/.incoming/Tiny").symlink_to(elsewhere)
    assert run(rsync.sweep(ModelPlace(str(tmp_path / "models"), "Tiny"))).returncode != 0
    assert (elsewhere / ".precious.abcdef").exists()
