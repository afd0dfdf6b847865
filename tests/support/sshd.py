"""A real sshd on loopback with keys of its own, for as long as a test needs it."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from vllmdeploy.core.host import Host
from vllmdeploy.effects.route import SshSettings

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin") or ""


def require_sshd() -> None:
    """Skip where it cannot run; with CI set that is a failure."""
    if SSHD and os.getuid() == 0:
        return
    reason = "needs root and openssh-server"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def make_key(file: Path, *, kind: str = "ed25519", passphrase: str = "") -> Path:
    subprocess.run(
        ("ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", "test", "-f", str(file)),
        check=True,
    )
    return file


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at the moment of asking."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports


def answering(text: str) -> Callable[[str], str]:
    """Someone who types this whatever is asked."""

    def answer(question: str) -> str:
        del question
        return text

    return answer


@dataclass(frozen=True, slots=True)
class Sshd:
    """One running server. Its folder holds host keys, the client's key and known_hosts."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]
    addresses: tuple[str, ...] = ("127.0.0.1",)

    @property
    def key(self) -> Path:
        return self.folder / "client"

    @property
    def known_hosts(self) -> Path:
        return self.folder / "known_hosts"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    def host_key(self, kind: str = "ed25519") -> str:
        """`KIND BASE64`, as known_hosts wants it."""
        words = (self.folder / f"host_{kind}.pub").read_text("utf-8").split()
        return " ".join(words[:2])

    def host(self, name: str = "a", *, user: str = "root") -> Host:
        return Host(name=name, address="127.0.0.1", port=self.port, user=user)

    def settings(self, **changes: Any) -> SshSettings:
        """This key, this known_hosts, and nothing of whoever runs the test."""
        own = SshSettings(
            known_hosts=self.known_hosts,
            key=self.key,
            config=None,
            system_known_hosts=(),
            default_keys=(),
            use_agent=False,
        )
        return replace(own, **changes)


@contextmanager
def sshd(
    folder: Path,
    *options: str,
    addresses: Sequence[str] = ("127.0.0.1",),
    authorized: Sequence[Path] = (),
) -> Generator[Sshd]:
    """`options` are lines of sshd_config; they win over those here."""
    folder.mkdir(parents=True, exist_ok=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    for kind in ("ed25519", "rsa"):
        if not (folder / f"host_{kind}").exists():
            make_key(folder / f"host_{kind}", kind=kind)
    if not (folder / "client").exists():
        make_key(folder / "client")
    public = [Path(f"{key}.pub").read_text("utf-8") for key in (folder / "client", *authorized)]
    (folder / "authorized_keys").write_text("".join(public), "utf-8")
    port = free_ports(1)[0]
    known = "".join(
        f"[{address}]:{port} {' '.join((folder / 'host_ed25519.pub').read_text().split()[:2])}\n"
        for address in addresses
    )
    (folder / "known_hosts").write_text(known, "utf-8")
    lines = (
        *options,
        *(f"ListenAddress {address}:{port}" for address in addresses),
        f"HostKey {folder}/host_ed25519",
        f"HostKey {folder}/host_rsa",
        f"AuthorizedKeysFile {folder}/authorized_keys",
        "PidFile none",
        "StrictModes no",
        "UsePAM no",
        "PermitRootLogin yes",
        "PasswordAuthentication yes",
        # Of two lines with MaxStartups this sshd takes the last, of all others the first.
        *(() if any("MaxStartups" in each for each in options) else ("MaxStartups 100",)),
        "LogLevel VERBOSE",
    )
    (folder / "sshd_config").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / "log").touch()
    process = subprocess.Popen(
        (SSHD, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "log")),
        stdin=subprocess.DEVNULL,
    )
    try:
        for address in addresses:
            _await_listener(process, address, port)
        yield Sshd(folder, port, process, tuple(addresses))
    finally:
        process.terminate()
        process.wait(20)


def _await_listener(process: subprocess.Popen[bytes], address: str, port: int) -> None:
    while process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex((address, port)) == 0:
                return
    raise AssertionError("sshd did not start")


@contextmanager
def login_user(name: str, shell: str, home: Path, *, password: str = "") -> Generator[str]:
    """An account of this machine for a while, with the given login shell."""
    subprocess.run(
        ("useradd", "--home-dir", str(home), "--create-home", "--shell", shell, name), check=True
    )
    try:
        if password:
            subprocess.run(("chpasswd",), input=f"{name}:{password}\n".encode(), check=True)
        yield pwd.getpwnam(name).pw_name
    finally:
        subprocess.run(("userdel", "--force", name), check=True, stderr=subprocess.DEVNULL)
