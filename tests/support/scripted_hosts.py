"""Hosts made of a real shell each, with programs on their PATH that only pretend.

What is asked of them runs for real: quoting, files, locks. A Docker that records what it was told
keeps containers as files; everything lives below one folder, and nothing of it as root.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vllmdeploy.config.settings import Settings
from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.host import Host
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.effects.shell import OnLine, Shell
from vllmdeploy.errors import HostError

_NOBODY = 65534

_DOCKER = r"""#!/bin/sh
home=${0%/bin/docker}
line=$(printf '%s\n' "docker $*" | tr '\n' ' ')
printf '%s\n' "$line" >> "$home/history"
case " $* " in " run --rm "*)
  echo '{"python":"3.12.3","ray":"2.60.0","vllm":"0.17.0","uid":0,"gid":0}'; exit ;;
esac
[ ! -f "$home/fail-$1" ] || { cat "$home/fail-$1" >&2; exit 125; }
case $1 in
  version) echo '{"version":"28.2.2","arch":"amd64","parts":[{"Name":"Engine"}]}' ;;
  ps) ls "$home/containers" ;;
  container) for one in "$home/containers"/*; do cat "$one"; done ;;
  image)
    arch=$(uname -m | sed 's/x86_64/amd64/; s/aarch64/arm64/')
    printf '{"Id":"sha256:%064d","Architecture":"%s","Config":{}}\n' 1 "$arch" ;;
  logs) cat "$home/logs" ;;
  start) sed -i 's/exited/running/' "$home/containers/$2" ;;
  stop) ;;
  rm) for last do :; done; rm -f "$home/containers/$last" "$home/../nodes/${home##*/}" ;;
  exec)
    for last do :; done
    case $last in
      nodes) printf '{"nodes":['; cat "$home/../nodes"/* | paste -sd , -; echo ']}' ;;
      *) cat "$home/status" ;;
    esac | tr -d '\n'; echo ;;
  run)
    for word do printf '%s\0' "$word"; done > "$home/argv"
    name='' labels='' ip='' node='' gpus=0 before=''
    for word do
      case $before in
        --name) name=$word ;;
        --label) labels="$labels,\"${word%%=*}\":\"${word#*=}\"" ;;
      esac
      case $word in
        --node-ip-address=*) ip=${word#*=} ;;
        --node-name=*) node=${word#*=} ;;
        --num-gpus=*) gpus=${word#*=} ;;
      esac
      before=$word
    done
    printf '{"id":"%s","name":"/%s","image":"i","image_id":"i","labels":{%s},' \
      "$name" "$name" "${labels#,}" > "$home/containers/$name"
    echo '"state":{"Status":"running"},"restarts":0}' >> "$home/containers/$name"
    printf '{"name":"%s","ip":"%s","alive":true,"resources":{"GPU":%s.0},"used":{}}\n' \
      "$node" "$ip" "$gpus" > "$home/../nodes/${home##*/}" ;;
esac
"""
_PROGRAMS = {
    "docker": _DOCKER,
    # The path to other hosts is there, nobody listens, and sudo is not for us.
    "bash": "#!/bin/sh\nexit 0\n",
    "ss": "#!/bin/sh\nexit 0\n",
    "sudo": "#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n",
}


@dataclass
class ScriptedHost:
    """One host: a folder with its programs, its home and its pretended Docker."""

    name: str
    ip: str
    folder: Path
    commands: list[str] = field(default_factory=list[str])
    _shell: LocalShell = field(init=False)

    def __post_init__(self) -> None:
        self._shell = LocalShell(self.name)
        for place in ("bin", "containers", "home"):
            (self.folder / place).mkdir(parents=True)
        (self.folder / "status").write_text('{"ray":{"state":"running"}}\n', "utf-8")
        (self.folder / "logs").write_text("", "utf-8")
        programs = {
            **_PROGRAMS,
            "ip": f"#!/bin/sh\necho '2: eth0    inet {self.ip}/24 scope global eth0'\n",
        }
        for name, text in programs.items():
            self.program(name, text)
        if os.getuid() == 0:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, _NOBODY, _NOBODY)

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(text, "utf-8")
        path.chmod(0o755)

    def fails(self, docker_verb: str, words: str) -> None:
        (self.folder / f"fail-{docker_verb}").write_text(words, "utf-8")

    @property
    def host(self) -> str:
        return self.name

    @property
    def docker(self) -> list[str]:
        """What Docker was told, one line each."""
        history = self.folder / "history"
        return history.read_text("utf-8").splitlines() if history.exists() else []

    @property
    def changes(self) -> list[str]:
        """Docker's words that are no questions."""
        asking = ("version", "ps", "container", "image", "exec", "logs", "run --rm")
        return [line for line in self.docker if not line[len("docker ") :].startswith(asking)]

    @property
    def container_argv(self) -> list[str]:
        """The words of the last `docker run`, as Docker got them."""
        return (self.folder / "argv").read_bytes().decode("utf-8", "surrogateescape").split("\0")

    @property
    def state(self) -> Path:
        return self.folder / "home" / ".local" / "state" / "vllmdeploy" / "vllm"

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result:
        self.commands.append(str(command))
        drop = ("setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups")
        inside = (
            *("env", "-C", str(self.folder), f"HOME={self.folder}/home"),
            f"PATH={self.folder}/bin:/usr/bin:/bin",
        )
        argv = (*(drop if os.getuid() == 0 else ()), *inside, *command.argv)
        return self._shell.run(replace(command, argv=argv), on_line=on_line)

    def close(self) -> None:
        """Nothing is held between commands."""


class ScriptedFleet:
    """Several such hosts, and the way to them that a `World` takes."""

    def __init__(self, folder: Path, *names: str) -> None:
        nodes = folder / "nodes"
        nodes.mkdir()
        if os.getuid() == 0:
            shutil.chown(nodes, _NOBODY, _NOBODY)
        self.hosts = {
            name: ScriptedHost(name, f"10.7.0.{number}", folder / name)
            for number, name in enumerate(names, 1)
        }
        self.failures: dict[str, HostError] = {}

    def __getitem__(self, name: str) -> ScriptedHost:
        return self.hosts[name]

    @property
    def changes(self) -> list[str]:
        return [f"{host.name}: {line}" for host in self.hosts.values() for line in host.changes]

    def connect(
        self, hosts: Sequence[Host], settings: Settings
    ) -> tuple[Mapping[str, Shell], dict[str, HostError]]:
        failed = {
            host.name: self.failures[host.name] for host in hosts if host.name in self.failures
        }
        there = {host.name: self.hosts[host.name] for host in hosts if host.name not in failed}
        return there, failed
