"""A real systemd in namespaces of a rig host."""

from __future__ import annotations

from pathlib import Path

from tests.rig.host import Host
from tests.rig.programs import until

SYSTEMD = Path("/lib/systemd/systemd")
BOOT = Path(__file__).with_name("booted.sh")


def boot_systemd(host: Host) -> str:
    """Start systemd in the host, and its sshd anew where systemd is PID 1; how to enter there."""
    spaces = "setsid unshare --mount --pid --fork --cgroup --propagation private"
    host.sh("cat >/run/booted.sh", stdin=BOOT.read_bytes())
    host.sh(f"{spaces} bash /run/booted.sh >/var/log/booted.log 2>&1 &")
    inside = until("systemd is up", lambda: _inside(host), every_s=0.2)
    host.stop_sshd()
    host.sh(f"{inside} /usr/sbin/sshd")
    return inside


def _inside(host: Host) -> str | None:
    pid = host.sh("pgrep -x systemd", check=False).stdout.strip()
    enter = f"nsenter -t {pid} -m -p -C"
    state = host.sh(f"{enter} systemctl is-system-running", check=False).stdout.strip()
    return enter if pid and state in ("running", "degraded") else None
