"""One host of the rig: its folder on disk, its namespaces, its sshd and its Docker Engine."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.rig import base, claim, network
from tests.rig.disk import Disk, Profile
from tests.rig.programs import RigError, run, until

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INIT = Path(__file__).with_name("host_init.sh")
DOCKERD = (
    *("dockerd", "--host", "unix:///run/docker.sock"),
    # No bridge, no firewall rules: every container of ours uses the host's network.
    *("--bridge", "none", "--iptables=false", "--ip-masq=false"),
    *("--exec-opt", "native.cgroupdriver=cgroupfs"),
)


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
    def disk(self) -> Disk:
        return Disk(self.folder)

    @property
    def public_key(self) -> str:
        return self.disk.host_key.with_suffix(".pub").read_text()

    @property
    def cgroup(self) -> str:
        return f"{claim.cgroup(self.number)}/{self.name}"

    def ip_of(self, nic: str) -> str:
        found = next(one for one in self.profile.nics if one.name == nic)
        return network.address(self.number, found.subnet, self.last)

    # Its life

    def install(self, *, authorized: str, golden: Path | None) -> None:
        """Give it a disk and an address; nothing runs yet."""
        self.disk.lay_out(self.profile, self.ip, authorized=authorized, golden=golden)
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

    def let_go(self) -> None:
        """Outlive this process without its complaint about a child that still runs."""
        if self._outer is not None:
            self._outer.returncode = 0

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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command in a host came to."""

    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0
