"""Getting to know hosts: their keys asked without logging in, recorded, and forgotten again."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vllmdeploy.core.host import Host
from vllmdeploy.effects.connect import CONNECTION_STARTS
from vllmdeploy.effects.dial import Dialler, key_changed
from vllmdeploy.effects.fanout import each
from vllmdeploy.effects.known_hosts import HostKey, KnownHosts, Trust, entry_line, without
from vllmdeploy.effects.route import Hop, SshSettings
from vllmdeploy.errors import HostError, HostKeyChanged, SettingsError, VllmdeployError

# The name to show, and the way there: jump hosts first.
Target = tuple[str, tuple[Hop, ...]]


@dataclass(frozen=True, slots=True)
class Introduced:
    """What one host, or a jump host on the way to one, answered with."""

    host: str
    hop: Hop
    key: HostKey
    trust: Trust
    recorded: str

    @property
    def changed(self) -> HostKeyChanged | None:
        if self.trust in (Trust.KNOWN, Trust.UNKNOWN):
            return None
        return key_changed(self.host, self.hop, self.key, self.recorded)


def waves(hosts: Sequence[Host], ssh: SshSettings) -> tuple[list[list[Target]], list[HostError]]:
    """Whom to ask when, and whom SSH cannot reach as configured.

    A jump host must be trusted before what lies behind it can be asked.
    """
    routes, failures = _routes(hosts, ssh)
    by_depth: dict[int, dict[tuple[Hop, ...], str]] = {}
    for host, hops in routes:
        for depth in range(1, len(hops) + 1):
            name = host.name if depth == len(hops) else hops[depth - 1].name
            by_depth.setdefault(depth, {}).setdefault(hops[:depth], name)
    ordered = [
        [(name, hops) for hops, name in by_depth[depth].items()] for depth in sorted(by_depth)
    ]
    return ordered, failures


def _routes(
    hosts: Sequence[Host], ssh: SshSettings
) -> tuple[list[tuple[Host, tuple[Hop, ...]]], list[HostError]]:
    dialler = Dialler(ssh)
    routes: list[tuple[Host, tuple[Hop, ...]]] = []
    failures: list[HostError] = []
    for host in hosts:
        try:
            routes.append((host, dialler.route(host)))
        except HostError as error:
            failures.append(error)
    return routes, failures


def introduce(wave: Sequence[Target], ssh: SshSettings) -> list[Introduced | HostError]:
    """Every host's key and what is known about it, in the order asked."""
    dialler = Dialler(ssh)

    def ask(target: Target) -> Introduced:
        name, hops = target
        key = dialler.key_at(hops, name)
        hop = hops[-1]
        return Introduced(name, hop, key, dialler.judge(hop, key), dialler.recorded(hop))

    try:
        answers = each(wave, ask, at_once=CONNECTION_STARTS)
    finally:
        dialler.close()
    found: list[Introduced | HostError] = []
    for answer in answers:
        if isinstance(answer, VllmdeployError) and not isinstance(answer, HostError):
            raise answer
        found.append(answer)
    return found


def namesakes(found: Sequence[Introduced]) -> dict[str, str]:
    """Hosts that answer with another host's key: one machine listed twice, or a cloned disk."""
    first: dict[HostKey, Introduced] = {}
    same: dict[str, str] = {}
    for each_one in found:
        earlier = first.setdefault(each_one.key, each_one)
        if earlier.host != each_one.host:
            same[each_one.host] = earlier.host
    return same


def record(file: Path, found: Sequence[Introduced]) -> None:
    """Add keys that are new. Another run may have been here since: a contradiction is refused."""
    with _exclusively(file) as (target, text):
        known = KnownHosts.read([target])
        added = ""
        for each_one in found:
            name = each_one.hop.known_as
            verdict = known.judge(name, each_one.key)
            if verdict is Trust.UNKNOWN:
                added += entry_line(name, each_one.key)
            elif verdict is not Trust.KNOWN:
                recorded = "; ".join(map(str, known.of(name)))
                raise key_changed(each_one.host, each_one.hop, each_one.key, recorded)
        if added:
            separator = "" if not text or text.endswith("\n") else "\n"
            _replace(target, text + separator + added)


def forget(file: Path, names: Sequence[str]) -> int:
    """Take the keys of these known_hosts names out; how many lines that were."""
    with _exclusively(file) as (target, text):
        kept = without(text, names)
        if kept != text:
            _replace(target, kept)
        return text.count("\n") - kept.count("\n")


def recorded_names(name: str, hosts: Sequence[Host], ssh: SshSettings) -> list[str]:
    """What known_hosts calls it: a host of the fleet, a jump host, or else the name itself."""
    routes, _ = _routes(hosts, ssh)
    found = [hops[-1].known_as for host, hops in routes if name in (host.name, host.address)]
    found += [hop.known_as for _, hops in routes for hop in hops[:-1] if hop.name == name]
    return list(dict.fromkeys(found)) or [name.lower()]


def elsewhere(ssh: SshSettings, names: Sequence[str]) -> list[str]:
    """Where the names are recorded besides our own file, as `FILE:LINE`."""
    others = [file for file in ssh.system_known_hosts if file != ssh.known_hosts]
    known = KnownHosts.read(others)
    return [f"{entry.file}:{entry.line}" for name in names for entry in known.of(name)]


@contextmanager
def _exclusively(file: Path) -> Generator[tuple[Path, str]]:
    """The file behind any link and its text, while no other run of ours may change it."""
    target = file.expanduser().resolve()
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            text = target.read_text("utf-8", "surrogateescape") if target.exists() else ""
            yield target, text
        finally:
            os.close(folder)
    except OSError as error:
        raise SettingsError([f"SSH_KNOWN_HOSTS: {file}: {error.strerror}"]) from error


def _replace(target: Path, text: str) -> None:
    """All of the new text or all of the old, never half of one."""
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as new:
            new.write(text)
            new.flush()
            os.fsync(new.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
