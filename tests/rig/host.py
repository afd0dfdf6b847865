"""One host of the rig: its folder on disk, its namespaces, its sshd and its Docker Engine."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.rig import base, network
from tests.rig.programs import RigError, run, until

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT = Path(__file__).with_name("host_init.sh")
RUNC = Path(__file__).with_name("runc_within_limits.sh")
USER_ID = 1500
PASSWORD = "correct horse battery staple"
# Folders of a real machine that are this host's own, and survive its reboot.
OWN_FOLDERS = (
    "var/lib",
    "var/log",
    "var/cache",
    "var/tmp",
    "root/.ssh",
    "home",
    "srv",
    "opt",
    "mnt",
)
MOUNT_POINTS = ("usr", "etc", "proc", "sys", "dev", "run", "tmp")
DOCKERD = (
    *("dockerd", "--host", "unix:///run/docker.sock", "--storage-driver", "overlay2"),
    # No bridge, no firewall rules: every container of ours uses the host's network.
    *("--bridge", "none", "--iptables=false", "--ip-masq=false"),
    *("--exec-opt", "native.cgroupdriver=cgroupfs"),
)
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


@dataclass(slots=True)
class Host:
    """A started host; `address` is what SSH connects to."""

    profile: Profile
    number: int
    last: int
    folder: Path
    _outer: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _init: int = field(default=0, repr=False)

    @property
    def name(self) -> str:
        return self.profile.name

    @property
    def user(self) -> str:
        return self.profile.user

    @property
    def ip(self) -> str:
        return self.ip_of(self.profile.nics[0].name)

    @property
    def address(self) -> str:
        return f"{self.user}@{self.ip}"

    @property
    def root(self) -> Path:
        """Its file system, seen from outside, less the parts that start empty with each boot."""
        return self.folder / "root"

    @property
    def home(self) -> Path:
        return self.root / ("root" if self.user == "root" else f"home/{self.user}")

    @property
    def cgroup(self) -> str:
        return f"vllmdeploy-rig-{self.number}/{self.name}"

    def ip_of(self, nic: str) -> str:
        found = next(one for one in self.profile.nics if one.name == nic)
        return network.address(self.number, found.subnet, self.last)

    # Its life

    def install(self, *, host_key: Path, authorized: str, golden: Path | None) -> None:
        """Lay its disk out; nothing runs yet."""
        for path in (*OWN_FOLDERS, *MOUNT_POINTS):
            (self.root / path).mkdir(parents=True, exist_ok=True)
        for link in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if Path("/", link).is_symlink():
                (self.root / link).symlink_to(Path("/", link).readlink())
        (self.root / "var/run").symlink_to("/run")
        (self.root / "root").chmod(0o700)
        for part in ("usr", "etc", "work-usr", "work-etc", "speed"):
            (self.folder / part).mkdir()
        for nic in self.profile.nics:
            if nic.speed_mbit is not None:
                (self.folder / "speed" / nic.name).write_text(f"{nic.speed_mbit}\n")
        if not _may_raise_limits():
            wrapper = self.folder / "usr/local/sbin/runc"
            wrapper.parent.mkdir(parents=True)
            shutil.copy2(RUNC, wrapper)
            wrapper.chmod(0o755)
        _write_etc(self.folder / "etc", self, host_key)
        self._authorize(authorized)
        if golden is not None:
            base.copy_engine(golden, self.root / "var/lib/docker")
        network.plug_in(self.number, self.name, self.last, self.profile.nics)

    def boot(self) -> None:
        """Make the namespaces and start what a real host starts."""
        log = self.folder / "init.log"
        with log.open("wb") as file:
            outer = subprocess.Popen(
                (
                    *("nsenter", f"--net=/run/netns/{network.namespace(self.number, self.name)}"),
                    *("unshare", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child"),
                    *("--propagation", "private", "bash", str(INIT), str(self.folder), self.name),
                ),
                env={
                    "PATH": PATH,
                    "READ_ONLY": "\n".join(base.shown_folders()),
                    "WITHOUT": "\n".join(self.profile.without),
                },
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._outer = outer

        def ready() -> int | None:
            if outer.poll() is not None:
                raise RigError(f"{self.name}: {log.read_text().strip()}")
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
            up = children and Path(f"/proc/{children[0]}/root/run/ready").exists()
            return int(children[0]) if up else None

        self._init = until(f"{self.name}: init is ready", ready)
        self.start_sshd()
        if self.profile.engine:
            self.start_docker()

    def power_off(self) -> None:
        """Everything ends at once, as when the plug is pulled: PID 1 takes all along."""
        if self._outer is None:
            return
        os.kill(self._init, signal.SIGKILL)
        self._outer.wait()
        self._outer, self._init = None, 0
        name = network.namespace(self.number, self.name)
        until(f"{self.name}: every process gone", lambda: not network.processes(name))

    def reboot(self) -> None:
        """As after a power cut: /run, /tmp and /dev/shm are empty, disks as they were, and Docker
        starts again what its restart policies say."""
        self.power_off()
        self.boot()

    # Its services

    def start_sshd(self) -> None:
        self.sh("/usr/sbin/sshd")

    def stop_sshd(self) -> None:
        """New connections are refused and open ones cut."""
        self.sh("pkill -KILL '^sshd'")

    def start_docker(self) -> None:
        command = shlex.join((*DOCKERD, "--cgroup-parent", f"/{self.cgroup}"))
        self.sh(f"setsid {command} >>/var/log/dockerd.log 2>&1 &")
        until(
            f"{self.name}: Docker answers",
            lambda: self.sh("docker version", check=False).ok,
            every_s=0.2,
        )

    def stop_docker(self) -> None:
        """As `systemctl stop docker`: containers end too, since live-restore is off."""
        self.sh("pkill -TERM -x dockerd")
        until(f"{self.name}: dockerd gone", lambda: not self.sh("pgrep -x dockerd", check=False).ok)

    def hang_docker(self) -> None:
        """The engine accepts connections and never answers."""
        self.sh("pkill -STOP -x dockerd")

    def resume_docker(self) -> None:
        self.sh("pkill -CONT -x dockerd")

    def set_link(self, nic: str = "eth0", *, up: bool) -> None:
        network.set_link(self.number, self.last, nic, up=up)

    # Inside it

    def files(self) -> frozenset[str]:
        """Every file on its own disks: what it was installed with, and what came since."""
        docker = self.root / "var/lib/docker"
        trees = {"/etc": self.folder / "etc", "/usr": self.folder / "usr"}
        for top in self.root.iterdir():
            if top.is_dir() and not top.is_symlink() and top.name not in MOUNT_POINTS:
                trees[f"/{top.name}"] = top
        found: set[str] = set()
        for name, tree in trees.items():
            for folder, folders, files in os.walk(tree):
                if Path(folder) == docker:
                    folders.clear()
                    continue
                inside = Path(name) / Path(folder).relative_to(tree)
                found.update(str(inside / file) for file in files)
        return frozenset(found)

    def enter(self, *argv: str) -> tuple[str, ...]:
        """A command as root inside the host, past its sshd."""
        spaces = ("--mount", "--uts", "--ipc", "--net", "--pid")
        environment = ("env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8")
        return ("nsenter", "--target", str(self._init), *spaces, *environment, *argv)

    def sh(
        self,
        text: str,
        *arguments: str,
        stdin: bytes = b"",
        limit_s: float = 60,
        check: bool = True,
    ) -> Answer:
        """A line of shell inside the host; `arguments` are its $1, $2, ..."""
        done = run(
            self.enter("sh", "-c", text, "sh", *arguments),
            stdin=stdin,
            limit_s=limit_s,
            check=check,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    def _authorize(self, key: str) -> None:
        folder = self.home / ".ssh"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "authorized_keys").write_text(key)
        if self.user != "root":
            for path in (self.home, folder, folder / "authorized_keys"):
                os.chown(path, USER_ID, USER_ID)
        folder.chmod(0o700)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in a host came to."""

    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0


def _may_raise_limits() -> bool:
    """Servers may; some sandboxes take that one right (CAP_SYS_RESOURCE, bit 24) even from root."""
    status = Path("/proc/self/status").read_text()
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) & (1 << 24))


def _write_etc(etc: Path, host: Host, host_key: Path) -> None:
    """What differs from this machine's /etc: name, one user, sshd."""
    user, shell = host.user, host.profile.shell
    (etc / "ssh").mkdir()
    (etc / "sudoers.d").mkdir(mode=0o750)
    (etc / "docker").mkdir()
    (etc / "docker/daemon.json").write_text("{}\n")
    (etc / "hostname").write_text(f"{host.name}\n")
    (etc / "hosts").write_text(f"127.0.0.1 localhost\n{host.ip} {host.name}\n")
    (etc / "ssh/sshd_config").write_text(SSHD_CONFIG)
    shutil.copy2(host_key, etc / "ssh/ssh_host_ed25519_key")
    hashed = run(("openssl", "passwd", "-6", "-stdin"), stdin=PASSWORD.encode()).stdout.strip()
    home, uid = ("/root", 0) if user == "root" else (f"/home/{user}", USER_ID)
    entries = {
        "passwd": f"{user}:x:{uid}:{uid}::{home}:{shell}",
        "shadow": f"{user}:{hashed}:19000:0:99999:7:::",
        "group": f"{user}:x:{uid}:",
    }
    for name, entry in entries.items():
        source = Path("/etc", name)
        kept = [line for line in source.read_text().splitlines() if line.split(":")[0] != user]
        (etc / name).write_text("\n".join((*kept, entry, "")))
        shutil.copystat(source, etc / name)
        os.chown(etc / name, 0, source.stat().st_gid)
    if user != "root":
        rule = etc / f"sudoers.d/{user}"
        rule.write_text(f"{user} ALL=(ALL) NOPASSWD: ALL\n")
        rule.chmod(0o440)
