"""A rig host's disk: what it is installed with, and what is found on it later."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.rig import base, network
from tests.rig.programs import run

USER_ID = 1500
PASSWORD = "correct horse battery staple"
RUNC = Path(__file__).with_name("runc_within_limits.sh")
# What survives a reboot besides /etc and /usr, which are this machine's with changes of their own.
OWN_FOLDERS = ("var/lib", "var/log", "var/cache", "var/tmp", "root", "home", "srv", "opt", "mnt")
MOUNT_POINTS = ("usr", "etc", "proc", "sys", "dev", "run", "tmp")
SSHD_CONFIG = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication yes
UsePAM no
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What makes a host unlike the others."""

    name: str
    user: str = "root"
    shell: str = "/bin/bash"
    nics: tuple[network.Nic, ...] = (network.Nic(),)
    without: tuple[str, ...] = ()
    engine: bool = True
    cards: int = 2

    @property
    def home(self) -> str:
        return "/root" if self.user == "root" else f"/home/{self.user}"


@dataclass(frozen=True, slots=True)
class Disk:
    folder: Path

    @property
    def root(self) -> Path:
        """The host's /, seen from outside: less /usr and /etc, and what starts empty each boot."""
        return self.folder / "root"

    @property
    def etc(self) -> Path:
        """What the host's /etc has otherwise than this machine's."""
        return self.folder / "etc"

    @property
    def usr(self) -> Path:
        return self.folder / "usr"

    @property
    def docker(self) -> Path:
        return self.root / "var/lib/docker"

    @property
    def host_key(self) -> Path:
        return self.etc / "ssh/ssh_host_ed25519_key"

    def lay_out(self, profile: Profile, ip: str, *, authorized: str, golden: Path | None) -> None:
        """Install; nothing runs yet. `golden` is an engine's folder that has the image."""
        for path in (*OWN_FOLDERS, *MOUNT_POINTS):
            (self.root / path).mkdir(parents=True, exist_ok=True)
        for link in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", link).is_symlink():
                (self.root / link).symlink_to(Path("/", link).readlink())
        (self.root / "var/run").symlink_to("/run")
        (self.root / "root").chmod(0o700)
        for part in ("usr", "etc", "work-usr", "work-etc", "speed"):
            (self.folder / part).mkdir()
        for nic in profile.nics:
            if nic.speed_mbit is not None:
                (self.folder / "speed" / nic.name).write_text(f"{nic.speed_mbit}\n")
        if not _may_raise_limits():
            wrapper = self.usr / "local/sbin/runc"
            wrapper.parent.mkdir(parents=True)
            shutil.copy2(RUNC, wrapper)
            wrapper.chmod(0o755)
        self._name(profile.name, ip)
        self._set_up_sshd()
        self._add_user(profile)
        self._authorize(profile, authorized)
        if golden is not None:
            base.copy_engine(golden, self.docker)

    def files(self) -> frozenset[str]:
        """Every file but Docker's own: what it was installed with, and what came since."""
        trees = {"/etc": self.etc, "/usr": self.usr}
        for top in self.root.iterdir():
            if top.is_dir() and not top.is_symlink() and top.name not in MOUNT_POINTS:
                trees[f"/{top.name}"] = top
        found: set[str] = set()
        for name, tree in trees.items():
            for folder, folders, files in os.walk(tree):
                if Path(folder) == self.docker:
                    folders.clear()
                    continue
                inside = Path(name) / Path(folder).relative_to(tree)
                found.update(str(inside / file) for file in files)
        return frozenset(found)

    def _name(self, name: str, ip: str) -> None:
        (self.etc / "hostname").write_text(f"{name}\n")
        (self.etc / "hosts").write_text(f"127.0.0.1 localhost\n{ip} {name}\n")
        (self.etc / "docker").mkdir()
        (self.etc / "docker/daemon.json").write_text('{"storage-driver": "overlay2"}\n')

    def _set_up_sshd(self) -> None:
        self.host_key.parent.mkdir()
        (self.etc / "ssh/sshd_config").write_text(SSHD_CONFIG)
        run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.host_key)))

    def _add_user(self, profile: Profile) -> None:
        user, uid = profile.user, 0 if profile.user == "root" else USER_ID
        hashed = run(("openssl", "passwd", "-6", "-stdin"), stdin=PASSWORD.encode()).stdout.strip()
        entries = {
            "passwd": f"{user}:x:{uid}:{uid}::{profile.home}:{profile.shell}",
            "shadow": f"{user}:{hashed}:19000:0:99999:7:::",
            "group": f"{user}:x:{uid}:",
        }
        for name, entry in entries.items():
            source, own = Path("/etc", name), self.etc / name
            kept = [line for line in source.read_text().splitlines() if line.split(":")[0] != user]
            own.write_text("\n".join((*kept, entry, "")))
            shutil.copystat(source, own)
            os.chown(own, 0, source.stat().st_gid)
        if user != "root":
            (self.etc / "sudoers.d").mkdir(mode=0o750)
            rule = self.etc / f"sudoers.d/{user}"
            rule.write_text(f"{user} ALL=(ALL) NOPASSWD: ALL\n")
            rule.chmod(0o440)

    def _authorize(self, profile: Profile, key: str) -> None:
        home = self.root / profile.home.lstrip("/")
        (home / ".ssh").mkdir(parents=True)
        (home / ".ssh/authorized_keys").write_text(key)
        (home / ".ssh").chmod(0o700)
        if profile.user != "root":
            for path in (home, home / ".ssh", home / ".ssh/authorized_keys"):
                os.chown(path, USER_ID, USER_ID)


def _may_raise_limits() -> bool:
    """Servers may; some sandboxes take that one right (CAP_SYS_RESOURCE, bit 24) even from root."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) & (1 << 24))
