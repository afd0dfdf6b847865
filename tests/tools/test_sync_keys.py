"""The key between hosts: one line in authorized_keys, and a server that reads models only."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.layout import Layout
from vllmdeploy.tools import stores, sync_keys

LAYOUT = Layout("/state/vllm")
PUBLIC = f"ssh-ed25519 {'A' * 68}"


def run(command: Command, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command.argv,
        input=(command.stdin or b"").decode(),
        env={"PATH": "/usr/bin:/bin", "HOME": str(home), **env},
        capture_output=True,
        text=True,
    )


def line() -> str:
    return sync_keys.authorized_line(LAYOUT, "vllm", "/srv/my models", PUBLIC)


def test_the_line_is_restricted_to_the_server_and_tagged() -> None:
    assert line() == (
        "restrict,command=\"sh /state/vllm/sync/serve.sh '/srv/my models' /state/vllm/images\" "
        f"{PUBLIC} vllmdeploy:vllm"
    )


def test_authorizing_twice_leaves_one_line_and_withdrawing_leaves_the_others(
    tmp_path: Path,
) -> None:
    file = tmp_path / ".ssh/authorized_keys"
    file.parent.mkdir()
    others = "ssh-rsa AAAA me@laptop\nssh-rsa BBBB vllmdeploy:vllm-2"
    file.write_text(others)
    file.chmod(0o600)
    for _ in range(2):
        assert run(sync_keys.authorize("vllm", line()), tmp_path).returncode == 0
    assert file.read_text() == f"{others}\n{line()}\n"
    found = run(sync_keys.authorized("vllm").command, tmp_path).stdout
    assert len(found) == 64
    assert run(sync_keys.withdraw("vllm"), tmp_path).returncode == 0
    assert file.read_text() == f"{others}\n"
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(sync_keys.authorized("vllm").command, tmp_path).stdout == ""
    assert [path.name for path in file.parent.iterdir()] == ["authorized_keys"]


def test_a_home_without_keys_gets_a_private_file_and_withdrawing_there_does_nothing(
    tmp_path: Path,
) -> None:
    assert run(sync_keys.withdraw("vllm"), tmp_path).returncode == 0
    assert list(tmp_path.iterdir()) == []
    assert run(sync_keys.authorize("vllm", line()), tmp_path).returncode == 0
    assert (tmp_path / ".ssh").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / ".ssh/authorized_keys").stat().st_mode & 0o777 == 0o600


def test_an_authorized_keys_file_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / "elsewhere").write_text("ssh-rsa AAAA me\n")
    (tmp_path / ".ssh/authorized_keys").symlink_to("../elsewhere")
    assert run(sync_keys.authorize("vllm", line()), tmp_path).returncode == 0
    assert (tmp_path / ".ssh/authorized_keys").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == f"ssh-rsa AAAA me\n{line()}\n"


def test_the_key_is_made_once_and_private(tmp_path: Path) -> None:
    layout = Layout(str(tmp_path / "state"))
    answers = [run(sync_keys.make(layout, "vllm"), tmp_path) for _ in range(2)]
    first, second = (sync_keys.parse_make(Result(each.returncode, each.stdout)) for each in answers)
    assert first is not None
    assert first == second
    assert b"BEGIN OPENSSH PRIVATE KEY" in first.private
    assert "PRIVATE" not in repr(first)
    assert (tmp_path / "state/secrets/sync/id_ed25519").stat().st_mode & 0o777 == 0o600
    held = run(sync_keys.held(layout).command, tmp_path)
    assert sync_keys.held(layout).parse(Result(0, held.stdout)) == first
    assert sync_keys.held(layout).parse(Result(0, "")) is None


@pytest.fixture
def served(tmp_path: Path) -> Path:
    """A model folder, its server, and an rsync that says what it was called with."""
    (tmp_path / "models/Tiny").mkdir(parents=True)
    (tmp_path / "models/.incoming/Half").mkdir(parents=True)
    (tmp_path / "images/.incoming/image-1").mkdir(parents=True)
    (tmp_path / "images/secret").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "models/Link").symlink_to(tmp_path / "outside")
    (tmp_path / "serve.sh").write_bytes(sync_keys.serve_script(LAYOUT).stdin or b"")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/rsync").write_text('#!/bin/sh\necho "$PWD: $*"\n')
    (tmp_path / "bin/rsync").chmod(0o755)
    return tmp_path


def serve(folder: Path, asked: str) -> subprocess.CompletedProcess[str]:
    roots = (str(folder / "models"), str(folder / "images"))
    command = Command(("sh", str(folder / "serve.sh"), *roots))
    path = f"{folder}/bin:/usr/bin:/bin"
    return run(command, folder, SSH_ORIGINAL_COMMAND=asked, PATH=path)


@pytest.mark.parametrize(("name", "where"), [("Tiny", "Tiny"), ("Half", ".incoming/Half")])
def test_a_model_is_read_whole_or_while_it_is_being_put_together(
    served: Path, name: str, where: str
) -> None:
    options = "-LRe.LsfxCIvu --timeout=20 --bwlimit=9 --info=STATS --append --append"
    said = serve(served, f"rsync --server --sender {options} --files-from=- --from0 . {name}/")
    assert said.stdout == (
        f"{served}/models/{where}: --server --sender {options} --files-from=- --from0 . ./\n"
    )


def test_an_image_is_read_while_it_is_on_its_way_even_where_no_models_are(served: Path) -> None:
    asked = "rsync --server --sender -LRe.LsfxCIvu . image-1/"
    expected = f"{served}/images/.incoming/image-1: --server --sender -LRe.LsfxCIvu . ./\n"
    assert serve(served, asked).stdout == expected
    (served / "models").rename(served / "gone")
    assert serve(served, asked).stdout == expected
    (served / "images").rename(served / "gone-too")
    assert serve(served, asked).stderr == "vllmdeploy: refused: no model folder here\n"


@pytest.mark.parametrize(
    "asked",
    [
        "",
        "id",
        "sh -c rsync",
        "rsync --server -LRe.LsfxCIvu . Tiny/",
        "rsync --server --sender -LRe.LsfxCIvu . Link/",
        "rsync --server --sender -LRe.LsfxCIvu . None/",
        "rsync --server --sender -LRe.LsfxCIvu . secret/",
        "rsync --server --sender -LRe.LsfxCIvu . /etc/",
        "rsync --server --sender -LRe.LsfxCIvu . ../outside/",
        "rsync --server --sender -LRe.LsfxCIvu . Tiny/../../outside/",
        "rsync --server --sender -LRe.LsfxCIvu . .incoming/",
        "rsync --server --sender -LRe.LsfxCIvu . Tiny/ Half/",
        "rsync --server --sender -LRe.LsfxCIvu Tiny/ .",
        "rsync --server --sender -LRe.LsfxCIvu .",
        "rsync --server --sender -LsRe.LfxCIvu . Tiny/",
        "rsync --server --sender -LRe.$(id) . Tiny/",
        "rsync --server --sender -LR;id . Tiny/",
        "rsync --server --sender --remove-source-files . Tiny/",
        "rsync --server --sender --files-from=/etc/shadow . Tiny/",
        "rsync --server --sender --log-file=/tmp/x . Tiny/",
        "rsync --server --sender --timeout=1;id . Tiny/",
        "rsync --server --sender --info=$(id) . Tiny/",
        "rsync --server --sender --write-devices . Tiny/",
        "rsync --server --daemon --config=/tmp/x . Tiny/",
    ],
)
def test_everything_else_is_refused(served: Path, asked: str) -> None:
    said = serve(served, asked)
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr.startswith("vllmdeploy: refused: ")


def test_what_a_host_has_for_its_peers_is_read_from_its_answer() -> None:
    found = sync_keys.PEERING.parse(
        Result(
            0,
            "user deploy\nport 2222\nrsync rsync  version 3.2.7  protocol version 31\nssh\n"
            "key ssh-ed25519 AAAA1\nkey ssh-rsa AAAA2\nkey ssh-ed25519 AAAA1\n",
        )
    )
    assert found == sync_keys.Peering(
        user="deploy",
        port=2222,
        rsync="rsync  version 3.2.7  protocol version 31",
        ssh=True,
        host_keys=("ssh-ed25519 AAAA1", "ssh-rsa AAAA2"),
    )
    assert sync_keys.PEERING.parse(Result(127)) == sync_keys.Peering()


def test_host_keys_are_known_by_the_address_on_the_data_network() -> None:
    keys = {"10.0.0.2": ("ssh-rsa AAAA2", "ssh-dss AAAA3"), "10.0.0.1": ("ssh-ed25519 AAAA1",)}
    assert sync_keys.known_hosts(keys) == (
        b"10.0.0.1 ssh-ed25519 AAAA1\n10.0.0.2 ssh-rsa AAAA2\n10.0.0.2 ssh-dss AAAA3\n"
    )


def test_hosts_that_see_each_others_nonce_share_a_folder() -> None:
    left = {"a": "1", "b": "2", "c": "3"}
    seen_by = {
        "a": frozenset({"1"}),
        "b": frozenset({"2", "3"}),
        "c": frozenset({"2", "3"}),
        "readonly": frozenset({"2", "3"}),
        "alone": frozenset[str](),
    }
    writers = stores.shared(left, seen_by)
    assert writers == {"a": "a", "b": "b", "c": "b", "readonly": "b", "alone": "alone"}


def test_a_nonce_is_left_seen_and_taken_away(tmp_path: Path) -> None:
    root, nonce = str(tmp_path / "models"), "0123456789abcdef" * 2
    fact = stores.seen(root)
    assert fact.parse(Result(0, run(fact.command, tmp_path).stdout)) == frozenset()
    assert run(stores.leave(root, nonce), tmp_path).returncode == 0
    assert fact.parse(Result(0, run(fact.command, tmp_path).stdout)) == {nonce}
    run(stores.take_away(root, nonce), tmp_path)
    assert fact.parse(Result(0, run(fact.command, tmp_path).stdout)) == frozenset()
