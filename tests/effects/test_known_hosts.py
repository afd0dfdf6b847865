"""OpenSSH's known_hosts, as ssh-keygen and people write it."""

from __future__ import annotations

import base64
import threading
from pathlib import Path

import pytest

from vllmdeploy.effects.known_hosts import (
    HostKey,
    KnownHosts,
    Trust,
    entries,
    entry_line,
    host_name,
    without,
)
from vllmdeploy.effects.route import Hop
from vllmdeploy.effects.trust import Introduced, record
from vllmdeploy.errors import HostKeyChanged

ED = HostKey("ssh-ed25519", b"one")
OTHER = HostKey("ssh-ed25519", b"two")
RSA = HostKey("ssh-rsa", b"three")
_ED = base64.b64encode(b"one").decode()


def known(text: str) -> KnownHosts:
    return KnownHosts(tuple(entries(text, Path("known"))))


@pytest.mark.parametrize(
    ("names", "name", "verdict"),
    [
        ("gpu-1", "gpu-1", Trust.KNOWN),
        ("gpu-1,10.0.0.1", "10.0.0.1", Trust.KNOWN),
        ("gpu-1", "gpu-10", Trust.UNKNOWN),
        ("gpu.1", "gpu-1", Trust.UNKNOWN),
        ("GPU-1", "gpu-1", Trust.KNOWN),
        ("[gpu-1]:2222", "[gpu-1]:2222", Trust.KNOWN),
        ("gpu-1", "[gpu-1]:2222", Trust.UNKNOWN),
        ("gpu-*", "gpu-12", Trust.KNOWN),
        ("gpu-?", "gpu-12", Trust.UNKNOWN),
        ("gpu-*,!gpu-2", "gpu-2", Trust.UNKNOWN),
        ("!gpu-2,gpu-*", "gpu-3", Trust.KNOWN),
        ("|1|bad|", "gpu-1", Trust.UNKNOWN),
        ("|1|%%|%%", "gpu-1", Trust.UNKNOWN),
    ],
)
def test_names_are_matched_as_openssh_does(names: str, name: str, verdict: Trust) -> None:
    assert known(f"{names} ssh-ed25519 {_ED} a comment\n").judge(name, ED) is verdict


def test_another_key_or_another_kind_of_key_means_changed() -> None:
    text = f"gpu-1 ssh-ed25519 {_ED}\n"
    assert known(text).judge("gpu-1", OTHER) is Trust.CHANGED
    assert known(text).judge("gpu-1", RSA) is Trust.CHANGED
    assert known(text + entry_line("gpu-1", RSA)).judge("gpu-1", RSA) is Trust.KNOWN


def test_a_revoked_key_is_never_trusted_and_authorities_are_passed_over() -> None:
    text = f"gpu-1 ssh-ed25519 {_ED}\n@revoked * ssh-ed25519 {_ED}\n"
    assert known(text).judge("gpu-1", ED) is Trust.REVOKED
    assert known(f"@cert-authority * ssh-ed25519 {_ED}\n").judge("gpu-1", ED) is Trust.UNKNOWN


def test_lines_that_say_nothing_are_passed_over() -> None:
    assert known("\n# gpu-1 ssh-ed25519 AAAA\ngpu-1 ssh-ed25519\ngpu-1 ssh-ed25519 !!\n") == known(
        ""
    )


def test_a_host_at_another_port_has_a_name_of_its_own() -> None:
    assert (host_name("GPU-1", 22), host_name("::1", 2222)) == ("gpu-1", "[::1]:2222")


def test_forgetting_takes_out_whole_lines_and_keeps_the_rest_as_it_was() -> None:
    text = f"# note\ngpu-1 ssh-ed25519 {_ED}\n\ngpu-2 ssh-rsa {_ED}\ngpu-1 ssh-rsa {_ED}"
    assert without(text, ["gpu-1"]) == f"# note\n\ngpu-2 ssh-rsa {_ED}\n"
    assert without(text, ["gpu-3"]) == text


def _introduced(name: str, key: HostKey) -> Introduced:
    hop = Hop(name=name, address=name, port=22, user="root", known_as=name)
    return Introduced(name, hop, key, Trust.UNKNOWN, "")


def test_runs_that_record_at_the_same_time_lose_nothing(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "known_hosts"
    threads = [
        threading.Thread(target=record, args=(file, [_introduced(f"gpu-{number}", ED)]))
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.names[0] for entry in KnownHosts.read([file]).entries} == {
        f"gpu-{number}" for number in range(16)
    }
    assert [each.name for each in file.parent.iterdir()] == ["known_hosts"]


def test_what_another_run_recorded_meanwhile_is_not_contradicted(tmp_path: Path) -> None:
    file = tmp_path / "known_hosts"
    file.write_text(f"gpu-1 ssh-ed25519 {_ED}", "utf-8")
    record(file, [_introduced("gpu-1", ED), _introduced("gpu-2", RSA)])
    assert file.read_text("utf-8") == f"gpu-1 ssh-ed25519 {_ED}\n" + entry_line("gpu-2", RSA)
    with pytest.raises(HostKeyChanged, match="known_hosts:1"):
        record(file, [_introduced("gpu-1", OTHER)])


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(file)
    record(link, [_introduced("gpu-1", ED)])
    assert link.is_symlink()
    assert file.read_text("utf-8") == entry_line("gpu-1", ED)
