"""What our user may do on a host, and so where sudo goes and where state lives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.layout import SYSTEM_STATE_ROOT, USER_STATE_FOLDER, Layout
from vllmdeploy.core.reading import whole

Sudo = Literal["never", "auto", "always"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What the host said about our user."""

    uid: int | None
    user: str
    home: str
    docker_socket: bool
    state_writable: bool
    sudo: bool
    sudo_says: str = ""


_QUESTION = """
uid=$(id -u)
printf 'uid=%s\\n' "$uid"
printf 'user=%s\\n' "$(id -un)"
printf 'home=%s\\n' "${HOME:-$(getent passwd "$uid" | cut -d : -f 6)}"
for s in "${DOCKER_HOST#unix://}" /var/run/docker.sock /run/docker.sock; do
  [ -n "$s" ] && [ -w "$s" ] && printf 'docker=yes\\n' && break
done
folder=$1
while [ ! -e "$folder" ]; do folder=${folder%/*}; [ -n "$folder" ] || folder=/; done
[ -w "$folder" ] && printf 'state=yes\\n'
if [ "$uid" != 0 ] && [ "$2" != never ]; then
  if answer=$(sudo -n true 2>&1); then printf 'sudo=yes\\n'
  else printf 'sudo_says=%s\\n' "$(printf '%s' "$answer" | tail -n 1)"; fi
fi
exit 0
"""


def _parse_rights(result: Result) -> Rights:
    said = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    return Rights(
        uid=whole(said.get("uid", "")),
        user=said.get("user", ""),
        home=said.get("home", ""),
        docker_socket=said.get("docker") == "yes",
        state_writable=said.get("state") == "yes",
        sudo=said.get("sudo") == "yes",
        sudo_says=said.get("sudo_says", ""),
    )


def rights(cluster: str, sudo: Sudo) -> Fact[Rights]:
    return Fact(
        name="rights",
        command=script(_QUESTION, f"{SYSTEM_STATE_ROOT}/{cluster}", sudo).within(20),
        parse=_parse_rights,
    )


@dataclass(frozen=True, slots=True)
class Access:
    """How to do things on one host: which commands go through sudo, and where state is."""

    layout: Layout
    user: str
    uid: int
    sudo_docker: bool
    sudo_files: bool
    home: str = ""

    @property
    def probes(self) -> str:
        """Answers of images, in a folder that whoever uses Docker here may write."""
        if self.sudo_files and not self.sudo_docker:
            cluster = self.layout.root.rpartition("/")[2]
            return Layout(f"{self.home}/{USER_STATE_FOLDER}/{cluster}").probes
        return self.layout.probes

    def of(self, command: Command) -> Command:
        """The command as this host needs it; Docker and files may differ in the rights needed."""
        if not command.root:
            return command
        sudo = self.sudo_docker if _is_docker(command) else self.sudo_files
        return command.elevated() if sudo else replace(command, root=False)


def _is_docker(command: Command) -> bool:
    if command.argv[0] == "docker":
        return True
    return command.argv[0] == "sh" and len(command.argv) > 2 and "docker " in command.argv[2]


def decide(cluster: str, sudo: Sudo, rights: Rights) -> Access:
    """State lives in /var/lib where we may write there by any permitted means, else at home."""
    is_root = rights.uid == 0
    may_sudo = not is_root and sudo != "never" and (rights.sudo or sudo == "always")
    wants_sudo_files = may_sudo and (sudo == "always" or not rights.state_writable)
    system_state = is_root or rights.state_writable or may_sudo
    root = SYSTEM_STATE_ROOT if system_state else f"{rights.home}/{USER_STATE_FOLDER}"
    return Access(
        layout=Layout(f"{root}/{cluster}"),
        user=rights.user,
        uid=-1 if rights.uid is None else rights.uid,
        sudo_docker=may_sudo and (sudo == "always" or not rights.docker_socket),
        sudo_files=wants_sudo_files,
        home=rights.home,
    )
