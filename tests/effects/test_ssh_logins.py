"""Who is let in and who is believed: host keys, keys, agents, passwords, against a real sshd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.sshd import Sshd, answering, login_user, make_key, require_sshd, sshd
from vllmdeploy.core.command import Command
from vllmdeploy.core.host import Host
from vllmdeploy.effects.connect import connect
from vllmdeploy.effects.route import SshSettings
from vllmdeploy.errors import (
    HostError,
    HostKeyChanged,
    HostKeyUnknown,
    HostUnreachable,
    SettingsError,
)

USER, PASSWORD = f"vdlogin{os.getpid()}", "correct horse"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    require_sshd()
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("home") / USER
    with login_user(USER, "/bin/sh", home, password=PASSWORD) as name:
        yield name


def failure(host: Host, settings: SshSettings) -> HostError:
    with connect([host], settings) as connected:
        assert not connected.shells
        return connected.failures[host.name]


def says_hello(host: Host, settings: SshSettings) -> bool:
    with connect([host], settings) as connected:
        assert not connected.failures
        return connected.shells[host.name].run(Command(("echo", "hello"))).stdout == "hello\n"


def refused_tries(server: Sshd, before: str) -> int:
    return len(re.findall(r"^Failed (?!none)", server.log[len(before) :], re.MULTILINE))


def fingerprint(public: Path) -> str:
    shown = subprocess.run(
        ("ssh-keygen", "-l", "-f", str(public)), capture_output=True, text=True, check=True
    )
    return shown.stdout.split()[1]


def test_an_unknown_host_key_is_shown_and_nothing_is_sent(server: Sshd, tmp_path: Path) -> None:
    before = server.log
    error = failure(server.host(), server.settings(known_hosts=tmp_path / "none"))
    assert isinstance(error, HostKeyUnknown)
    shown = fingerprint(server.folder / "host_ed25519.pub")
    assert str(error) == (
        f"a: its SSH host key is not known: {shown} (ed25519)\n"
        "  -> `vllmdeploy trust` shows the keys of all hosts and records them"
    )
    assert "Accepted" not in server.log[len(before) :]


@pytest.mark.parametrize("kind", ["ed25519", "rsa"])
def test_a_changed_host_key_is_fatal_with_both_fingerprints(
    server: Sshd, tmp_path: Path, kind: str
) -> None:
    other = make_key(tmp_path / "other", kind=kind)
    words = Path(f"{other}.pub").read_text("utf-8").split()
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {words[0]} {words[1]}\n", "utf-8")
    before = server.log
    error = failure(server.host(), server.settings(known_hosts=known))
    assert isinstance(error, HostKeyChanged)
    assert fingerprint(Path(f"{other}.pub")) in str(error)
    assert fingerprint(server.folder / f"host_{kind}.pub") in str(error)
    assert "vllmdeploy trust --forget a" in error.hint
    assert "Accepted" not in server.log[len(before) :]


def test_a_host_known_by_one_kind_of_key_only_is_asked_for_that_kind(
    server: Sshd, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {server.host_key('rsa')}\n", "utf-8")
    assert says_hello(server.host(), server.settings(known_hosts=known))


def test_a_key_of_a_kind_that_was_never_recorded_counts_as_changed(
    server: Sshd, tmp_path: Path
) -> None:
    other = make_key(tmp_path / "other", kind="ecdsa")
    words = Path(f"{other}.pub").read_text("utf-8").split()
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{server.port} {words[0]} {words[1]}\n", "utf-8")
    error = failure(server.host(), server.settings(known_hosts=known))
    assert isinstance(error, HostKeyChanged)


def test_hashed_names_and_the_system_file_are_believed(server: Sshd, tmp_path: Path) -> None:
    hashed = tmp_path / "hashed"
    hashed.write_text(server.known_hosts.read_text("utf-8"), "utf-8")
    subprocess.run(("ssh-keygen", "-q", "-H", "-f", str(hashed)), check=True, capture_output=True)
    assert hashed.read_text("utf-8").startswith("|1|")
    settings = server.settings(known_hosts=tmp_path / "none", system_known_hosts=(hashed,))
    assert says_hello(server.host(), settings)


def test_a_revoked_key_is_refused(server: Sshd, tmp_path: Path) -> None:
    revoked = tmp_path / "revoked"
    revoked.write_text(f"@revoked * {server.host_key()}\n", "utf-8")
    error = failure(server.host(), server.settings(system_known_hosts=(revoked,)))
    assert isinstance(error, HostKeyChanged)


def test_a_password_from_a_file_lets_in_and_serves_no_one_else_to_read(
    server: Sshd, user: str, tmp_path: Path
) -> None:
    file = tmp_path / "password"
    file.write_text(f"{PASSWORD}\n", "utf-8")
    file.chmod(0o600)
    settings = server.settings(key=None, password_file=file)
    assert says_hello(server.host(user=user), settings)
    file.chmod(0o640)
    with pytest.raises(SettingsError, match=r"can be read by others \(mode 0640\)"):
        connect([server.host(user=user)], settings)


def test_a_password_is_asked_for_once_for_the_whole_fleet(server: Sshd, user: str) -> None:
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return PASSWORD

    hosts = [server.host(name, user=user) for name in "abcd"]
    with connect(hosts, server.settings(key=None, ask=ask)) as connected:
        assert list(connected.shells) == ["a", "b", "c", "d"]
    (question,) = asked
    assert re.fullmatch(rf"SSH password of {user}@\S+, and of all others that want one", question)


def test_a_wrong_password_is_one_clear_error_after_one_try(server: Sshd, user: str) -> None:
    before = server.log
    error = failure(server.host(user=user), server.settings(key=None, ask=answering("wrong")))
    assert str(error) == (
        f"a: sshd refused user {user} (tried password)\n"
        "  -> set SSH_USER, SSH_KEY or SSH_PASSWORD_FILE so that "
        f"`ssh {user}@127.0.0.1 -p {server.port}` works"
    )
    assert refused_tries(server, before) == 1


def test_a_key_that_is_not_welcome_is_named(server: Sshd, tmp_path: Path) -> None:
    key = make_key(tmp_path / "stranger")
    error = failure(server.host(), server.settings(key=key))
    assert f"sshd refused user root (tried {key})" in str(error)


def test_an_encrypted_key_opens_by_its_passphrase_or_says_what_to_do(tmp_path: Path) -> None:
    require_sshd()
    key = make_key(tmp_path / "encrypted", passphrase="open sesame")
    with sshd(tmp_path / "sshd", authorized=[key]) as server:
        error = failure(server.host(), server.settings(key=key))
        assert f"{key} is encrypted: `ssh-add {key}` first" in str(error)
        settings = server.settings(key=key, ask=answering("open sesame"))
        assert says_hello(server.host(), settings)
        wrong = server.settings(key=key, ask=answering("wrong"))
        assert "the passphrase does not open it" in str(failure(server.host(), wrong))


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is not installed")
    path = tmp_path / "agent"
    process = subprocess.Popen(
        ("ssh-agent", "-D", "-a", str(path)), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
        yield path
        process.terminate()


def _add(agent: Path, key: Path) -> None:
    environment = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
    subprocess.run(("ssh-add", "-q", str(key)), check=True, env=environment)


def test_an_agent_with_many_keys_never_makes_more_than_three_tries(
    server: Sshd, agent: Path, tmp_path: Path
) -> None:
    for number in range(20):
        _add(agent, make_key(tmp_path / f"key{number}"))
    before = server.log
    error = failure(server.host(), server.settings(key=None, use_agent=True))
    assert isinstance(error, HostUnreachable)
    assert "17 more keys were not tried: 3 tries only" in str(error)
    assert refused_tries(server, before) == 3
    assert says_hello(server.host(), server.settings(use_agent=True))


def test_the_agent_opens_what_is_encrypted_on_disk(agent: Path, tmp_path: Path) -> None:
    require_sshd()
    key = make_key(tmp_path / "plain")
    _add(agent, key)
    for number in range(5):
        _add(agent, make_key(tmp_path / f"key{number}"))
    subprocess.run(
        ("ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(key)), check=True, capture_output=True
    )
    with sshd(tmp_path / "sshd", authorized=[key]) as server:
        assert says_hello(server.host(), server.settings(key=key, use_agent=True))


def test_names_that_look_like_options_start_no_program(server: Sshd, tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    for address in (f"-oProxyCommand=touch {touched}", f"`touch {touched}`", "a\nb", "%h;id"):
        host = replace(server.host("x"), address=address)
        assert isinstance(failure(host, server.settings()), HostError)
    for name in (f"-oProxyCommand=touch {touched}", f"$(touch {touched})"):
        assert isinstance(failure(server.host(user=name), server.settings()), HostError)
    assert not touched.exists()
