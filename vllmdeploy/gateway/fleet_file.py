"""The configuration file of the gateway: JSON to values, every problem at once."""

from __future__ import annotations

import re
from collections.abc import Sequence

from vllmdeploy.errors import SettingsError, UsageError
from vllmdeploy.gateway.address import parse_url
from vllmdeploy.gateway.jsonvalue import NOTHING, Object, as_list, as_object, as_texts, loads
from vllmdeploy.gateway.spec import FleetSpec, UpstreamSpec
from vllmdeploy.routing import policies, scheduling

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:\-]{0,127}")
_KEYS = ("upstreams", "policy", "scheduling", "default_model")
_UPSTREAM_KEYS = (
    *("id", "url", "models", "weight", "cost", "limit", "generation", "key_file"),
    *("tensor_parallel_size", "max_num_seqs", "max_workers", "drain"),
)
# Whether it is a whole number, the default, the least and the most.
_NUMBERS: dict[str, tuple[bool, float, float, float]] = {
    "weight": (False, 1.0, 1e-6, 1e6),
    "cost": (False, 1.0, 1e-6, 1e9),
    "limit": (True, 256, 1, 1_000_000),
    "generation": (True, 0, 0, 2**53),
    "tensor_parallel_size": (True, 0, 0, 1_000_000),
    "max_num_seqs": (True, 0, 0, 1_000_000),
    "max_workers": (True, 0, 0, 1_000_000),
}


def parse(text: str, path: str) -> FleetSpec:
    try:
        document = as_object(loads(text))
    except ValueError as error:
        raise SettingsError([f"{path}: not JSON: {error}"]) from error
    if document is None:
        raise SettingsError([f"{path}: not a JSON object"])
    problems: list[str] = []
    _unknown(document, _KEYS, path, problems)
    listed = as_list(document.get("upstreams", []))
    upstreams: list[UpstreamSpec] = []
    if listed is None:
        problems.append(f"{path}: upstreams is not a list")
    for number, entry in enumerate(listed or ()):
        found = upstream(entry, f"{path}: upstreams[{number}]", problems)
        if found is not None:
            upstreams.append(found)
    ids = [one.id for one in upstreams]
    problems.extend(
        f"{path}: id {one} is given twice" for one in {i for i in ids if ids.count(i) > 1}
    )
    spec = FleetSpec(
        tuple(upstreams),
        _text(document, "policy", policies.DEFAULT, path, problems),
        _text(document, "scheduling", scheduling.DEFAULT, path, problems),
        _text(document, "default_model", "", path, problems),
    )
    problems.extend(f"{path}: {problem}" for problem in _unknown_ways(spec))
    if problems:
        raise SettingsError(problems)
    return spec


def upstream(value: object, where: str, problems: list[str]) -> UpstreamSpec | None:
    """One upstream of the file, or of a call of the admin API."""
    before = len(problems)
    entry = as_object(value)
    if entry is None:
        problems.append(f"{where} is not an object")
        entry = NOTHING
    _unknown(entry, _UPSTREAM_KEYS, where, problems)
    url = _text(entry, "url", "", where, problems)
    identity = _text(entry, "id", "", where, problems)
    try:
        identity = identity or default_id(url)
    except UsageError as error:
        problems.append(f"{where}: {error}")
    else:
        if not ID.fullmatch(identity):
            problems.append(f"{where}: id may have letters, digits and . _ : -")
    models = as_texts(entry.get("models", []))
    if models is None:
        problems.append(f"{where}: models is not a list of names")
    numbers = {name: _number(entry, name, where, problems) for name in _NUMBERS}
    key_file = _text(entry, "key_file", "", where, problems)
    drain = entry.get("drain", False)
    if not isinstance(drain, bool):
        problems.append(f"{where}: drain is not true or false")
    if len(problems) > before:
        return None
    return UpstreamSpec(
        identity,
        url,
        tuple(models or ()),
        weight=numbers["weight"],
        cost=numbers["cost"],
        limit=int(numbers["limit"]),
        generation=int(numbers["generation"]),
        key_file=key_file,
        tensor_parallel_size=int(numbers["tensor_parallel_size"]),
        max_num_seqs=int(numbers["max_num_seqs"]),
        max_workers=int(numbers["max_workers"]),
        drain=drain is True,
    )


def default_id(url: str) -> str:
    address = parse_url(url)
    return f"{address.host}:{address.port}"


def _unknown_ways(spec: FleetSpec) -> list[str]:
    problems: list[str] = []
    for known, name in ((policies.create, spec.policy), (scheduling.scheduling, spec.scheduling)):
        try:
            known(name)
        except UsageError as error:
            problems.append(str(error))
    return problems


def _text(entry: Object, name: str, default: str, where: str, problems: list[str]) -> str:
    value = entry.get(name, default)
    if isinstance(value, str):
        return value
    problems.append(f"{where}: {name} is not a text")
    return default


def _number(entry: Object, name: str, where: str, problems: list[str]) -> float:
    whole, default, least, most = _NUMBERS[name]
    value = entry.get(name, default)
    is_number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if is_number and isinstance(value, (int, float)) and least <= value <= most:
        return value
    problems.append(f"{where}: {name} is not a number from {least:g} to {most:g}")
    return default


def _unknown(entry: Object, known: Sequence[str], where: str, problems: list[str]) -> None:
    problems.extend(
        f"{where}: {name!r} is not known; known: {', '.join(known)}"
        for name in entry
        if name not in known
    )
