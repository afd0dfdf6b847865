"""Loads settings and hosts once, from flags, environment and files, with every problem at once."""

from __future__ import annotations

import re
import socket
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from vllmdeploy.config import envfile, nodes
from vllmdeploy.config.conflicts import conflicts
from vllmdeploy.config.fleet import assemble
from vllmdeploy.config.keys.all import KEYS, Settings
from vllmdeploy.config.sources import Gathered, Given, gather, is_group_image
from vllmdeploy.core.host import FRONT_GROUP, Fleet, Host
from vllmdeploy.errors import SettingsError

__all__ = ("CONFIG_FILE", "KEYS", "Loaded", "Settings", "load", "starting")

CONFIG_FILE = "config.env"
_BESIDE_CONFIG = (
    *("worker_nodes_file", "ssh_key", "ssh_known_hosts", "ssh_password_file"),
    *("api_keys_file", "admin_key_file", "hf_token_file", "modelscope_token_file"),
)
"""Files of the fleet: named in config.env, a relative path starts at its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """Settings and fleet, and where they came from. `notes` are for the user's eyes."""

    settings: Settings
    fleet: Fleet
    nodes: tuple[Host, ...]
    sources: Mapping[str, str]
    bare: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def source(self, key: str) -> str:
        return self.sources.get(key, "default")


@dataclass(slots=True)
class _Findings:
    problems: list[str] = field(default_factory=list[str])
    notes: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """The settings half way: `refused` keys have their defaults until the problems are raised."""

    gathered: Gathered
    settings: Settings
    refused: frozenset[str]
    findings: _Findings
    accelerators: Collection[str]


def load(
    *,
    config_path: Path | None = None,
    nodes_path: Path | None = None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    bare_names: bool = False,
    accelerators: Collection[str] = (),
    this_machine: str | None = None,
) -> Loaded:
    """A path that is given must be there; without one the usual name is tried."""
    findings = _Findings()
    config = config_path or Path(CONFIG_FILE)
    text = _text(config, findings, required=config_path is not None, without="defaults are used")
    parsed = envfile.parse(text or "", name=str(config))
    gathered = gather(
        overrides=overrides or {},
        environ=environ,
        entries=parsed.entries,
        file_name=str(config),
        known=KEYS,
        bare_names=bare_names,
    )
    findings.problems += parsed.problems
    reading = _validated(gathered, findings, accelerators)
    reading = _beside(config.parent, reading)
    return _joined(reading, _nodes(reading, nodes_path), this_machine)


def starting(
    answers: Mapping[str, str],
    *,
    nodes_text: str,
    nodes_name: str,
    accelerators: Collection[str] = (),
    this_machine: str | None = None,
) -> Loaded:
    """What `init` is about to write, checked in full before there is a file."""
    gathered = gather(
        overrides=answers, environ={}, entries=(), file_name="", known=KEYS, bare_names=False
    )
    reading = _validated(gathered, _Findings(), accelerators)
    parsed = nodes.parse(nodes_text, name=nodes_name, accelerators=accelerators)
    reading.findings.problems += parsed.problems
    return _joined(reading, parsed.hosts, this_machine)


def _joined(reading: _Reading, found: tuple[Host, ...] | None, this_machine: str | None) -> Loaded:
    settings, given, findings = reading.settings, reading.gathered.given, reading.findings
    fleet, problems = assemble(
        found or (),
        head_host=settings.head_host,
        head_ip=settings.head_ip,
        this_machine=this_machine or socket.gethostname(),
        gateway_hosts=settings.gateway_hosts,
    )
    findings.problems += problems
    groups = None if found is None else (*fleet.groups, FRONT_GROUP)
    findings.problems += (*_together(reading, groups), *_vendor(reading))
    if findings.problems:
        raise SettingsError(sorted(findings.problems, key=_by_line))
    return Loaded(
        settings=settings,
        fleet=fleet,
        nodes=found or (),
        sources={key: _origin(text) for key, text in given.items()},
        bare=tuple(key for key, text in given.items() if text.bare),
        notes=tuple(findings.notes),
    )


def _text(
    path: Path, findings: _Findings, *, required: bool, without: str, where: str = ""
) -> str | None:
    try:
        return envfile.read_text(path)
    except FileNotFoundError:
        if required:
            findings.problems.append(f"{where}{path}: no such file; `vllmdeploy init` writes one")
        else:
            findings.notes.append(f"{path} is not there: {without}")
    except OSError as error:
        findings.problems.append(f"{where}{path}: {error.strerror}")
    except ValueError as error:
        findings.problems.append(f"{where}{path}: {error}")
    return None


def _validated(gathered: Gathered, findings: _Findings, accelerators: Collection[str]) -> _Reading:
    refused: dict[str, str] = {}
    try:
        settings = Settings.model_validate(_raw(gathered.given.values()))
    except ValidationError as error:
        for detail in error.errors():
            key = "_".join(str(part) for part in detail["loc"]).replace("IMAGES_", "IMAGE_", 1)
            refused[key] = str(detail.get("ctx", {})["error"])
        kept = [given for key, given in gathered.given.items() if key not in refused]
        settings = Settings.model_validate(_raw(kept))
    findings.problems += gathered.problems
    findings.problems += (
        f"{gathered.given[key].where}: {problem}" for key, problem in refused.items()
    )
    return _Reading(
        gathered=gathered,
        settings=settings,
        refused=frozenset(refused),
        findings=findings,
        accelerators=accelerators,
    )


def _raw(given: Collection[Given]) -> dict[str, object]:
    images = {
        item.key.removeprefix("IMAGE_"): item.text for item in given if is_group_image(item.key)
    }
    keys = {item.key: item.text for item in given if not is_group_image(item.key)}
    return {**keys, "IMAGES": images}


def _beside(folder: Path, reading: _Reading) -> _Reading:
    moved: dict[str, Path] = {}
    for name in _BESIDE_CONFIG:
        path: Path | None = getattr(reading.settings, name)
        given = reading.gathered.given.get(name.upper())
        if path is not None and (given is None or given.in_file):
            moved[name] = folder / path
    return replace(reading, settings=reading.settings.model_copy(update=moved))


def _nodes(reading: _Reading, nodes_path: Path | None) -> tuple[Host, ...] | None:
    """The hosts of the nodes file, None where there is no such file."""
    path = nodes_path or reading.settings.worker_nodes_file
    named = None if nodes_path else reading.gathered.given.get("WORKER_NODES_FILE")
    text = _text(
        path,
        reading.findings,
        required=bool(nodes_path or named),
        without="the fleet is the head alone",
        where=f"{named.where}: " if named else "",
    )
    if text is None:
        return None
    found = nodes.parse(text, name=str(path), accelerators=reading.accelerators)
    reading.findings.problems += found.problems
    return found.hosts


def _together(reading: _Reading, groups: tuple[str, ...] | None) -> Iterator[str]:
    for keys, problem in conflicts(reading.settings, groups):
        if reading.refused.isdisjoint(keys):
            yield f"{reading.gathered.given[keys[0]].where}: {problem}"


def _vendor(reading: _Reading) -> Iterator[str]:
    for problem in nodes.vendor_problems(reading.settings.accelerator, reading.accelerators):
        where = reading.gathered.given["ACCELERATOR"].where
        yield f"{where}: {problem.removeprefix('accelerator: ')}"


def _origin(given: Given) -> str:
    return given.where.rpartition(": ")[0]


def _by_line(problem: str) -> tuple[str, int]:
    match = re.match(r"(.*?):(\d+): ", problem)
    return (match[1], int(match[2])) if match else ("", 0)
