"""What administrators changed over the gateway's file and flags, as a value and as text."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from vllmdeploy.errors import SettingsError
from vllmdeploy.gateway.fleet_file import upstream
from vllmdeploy.gateway.jsonvalue import NOTHING, as_list, as_object, loads
from vllmdeploy.gateway.spec import FleetSpec, UpstreamSpec

_VERSION = 1


class Mark(NamedTuple):
    """One instance as it was: another generation or address under its name is another one."""

    id: str
    url: str
    generation: int


class Ways(NamedTuple):
    routing: str
    scheduling: str
    default_model: str


@dataclass(frozen=True, slots=True)
class Kept:
    """`ways` are in force while the file still says `over`, which it said when they were set."""

    added: tuple[UpstreamSpec, ...] = ()
    removed: frozenset[Mark] = frozenset()
    drained: frozenset[Mark] = frozenset()
    ways: Ways | None = None
    over: Ways | None = None

    def add(self, spec: UpstreamSpec) -> Kept:
        return replace(
            self,
            added=(*self._others(spec.id), spec),
            removed=_without(self.removed, spec.id),
            drained=_without(self.drained, spec.id) | self.drained & {mark_of(spec)},
        )

    def remove(self, identity: str, given: Iterable[UpstreamSpec]) -> Kept:
        """`given`: by the file and the flags, which will name it again."""
        gone = {mark_of(one) for one in given if one.id == identity}
        return replace(
            self,
            added=self._others(identity),
            removed=self.removed | gone,
            drained=_without(self.drained, identity),
        )

    def drain(self, spec: UpstreamSpec) -> Kept:
        return replace(self, drained=_without(self.drained, spec.id) | {mark_of(spec)})

    def resume(self, identity: str) -> Kept:
        return replace(self, drained=_without(self.drained, identity))

    def within(self, file: FleetSpec, flags: tuple[UpstreamSpec, ...]) -> Kept:
        """Without what means nothing any more: the file has the last word on what it names."""
        named = {one.id for one in file.upstreams}
        added = tuple(one for one in self.added if one.id not in named)
        given = {mark_of(one) for one in (*file.upstreams, *flags)}
        stands = self.over == ways_of(file)
        return Kept(
            added,
            self.removed & given,
            self.drained & (given | {mark_of(one) for one in added}),
            self.ways if stands else None,
            self.over if stands else None,
        )

    def wanted(self, given: Iterable[UpstreamSpec]) -> tuple[UpstreamSpec, ...]:
        added = {one.id for one in self.added}
        return tuple(
            one for one in given if one.id not in added and mark_of(one) not in self.removed
        )

    def _others(self, identity: str) -> tuple[UpstreamSpec, ...]:
        return tuple(one for one in self.added if one.id != identity)


def mark_of(spec: UpstreamSpec) -> Mark:
    return Mark(spec.id, spec.url, spec.generation)


def ways_of(spec: FleetSpec) -> Ways:
    return Ways(spec.policy, spec.scheduling, spec.default_model)


def dumps(kept: Kept) -> str:
    document = {
        "version": _VERSION,
        "added": [_entry(one) for one in kept.added],
        "removed": sorted(kept.removed),
        "drained": sorted(kept.drained),
        "ways": kept.ways,
        "over": kept.over,
    }
    return json.dumps(document, indent=1) + "\n"


def parse(text: str, path: str) -> Kept:
    """Raises SettingsError for anything that `dumps` of this version did not write."""
    try:
        document = as_object(loads(text)) or NOTHING
    except ValueError as error:
        raise SettingsError([f"{path}: not JSON: {error}"]) from error
    if document.get("version") != _VERSION:
        raise SettingsError([f"{path}: version {document.get('version')!r}, not {_VERSION}"])
    problems: list[str] = []
    added = [
        upstream(one, f"{path}: added[{number}]", problems)
        for number, one in enumerate(_list(document.get("added"), f"{path}: added", problems))
    ]
    found = Kept(
        tuple(one for one in added if one is not None),
        _marks(document.get("removed"), f"{path}: removed", problems),
        _marks(document.get("drained"), f"{path}: drained", problems),
        _ways(document.get("ways"), f"{path}: ways", problems),
        _ways(document.get("over"), f"{path}: over", problems),
    )
    if problems:
        raise SettingsError(problems)
    return found


def _entry(spec: UpstreamSpec) -> dict[str, object]:
    return {name: value for name, value in asdict(spec).items() if name != "key_file"}


def _without(marks: frozenset[Mark], identity: str) -> frozenset[Mark]:
    return frozenset(one for one in marks if one.id != identity)


def _list(value: object, where: str, problems: list[str]) -> list[object]:
    found = as_list(value)
    if found is None:
        problems.append(f"{where} is not a list")
    return found or []


def _marks(value: object, where: str, problems: list[str]) -> frozenset[Mark]:
    found: set[Mark] = set()
    for one in _list(value, where, problems):
        match as_list(one):
            case [str(identity), str(url), int(generation)]:
                found.add(Mark(identity, url, generation))
            case _:
                problems.append(f"{where}: not an id, an address and a generation")
    return frozenset(found)


def _ways(value: object, where: str, problems: list[str]) -> Ways | None:
    if value is None:
        return None
    match as_list(value):
        case [str(routing), str(way), str(model)]:
            return Ways(routing, way, model)
        case _:
            problems.append(f"{where} is not a routing policy, a scheduling and a model")
            return None
