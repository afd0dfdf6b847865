"""Docker Compose: a container's spec as one of its services, and the text of the whole file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vllmdeploy.core.spec import ContainerSpec
from vllmdeploy.errors import UsageError

Value = str | int | bool | Sequence["Value"] | Mapping[str, "Value"]

_ULIMITS: Mapping[str, Value] = {
    "memlock": {"soft": -1, "hard": -1},
    "stack": {"soft": 67108864, "hard": 67108864},
    "nofile": {"soft": 1048576, "hard": 1048576},
}
# `docker run` flags that are lists in Compose.
_LISTS = {
    "--device": "devices",
    "--group-add": "group_add",
    "--cap-add": "cap_add",
    "--security-opt": "security_opt",
    "-v": "volumes",
    "--volume": "volumes",
}
_SINGLE = {
    "--ipc": "ipc",
    "--pid": "pid",
    "--runtime": "runtime",
    "--user": "user",
    "--shm-size": "shm_size",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """One service of a Compose file. `health`: a URL that answers 200 when it can be used;
    `after`: services that have to be healthy first."""

    spec: ContainerSpec
    health: str = ""
    after: tuple[str, ...] = ()
    start_s: int = 1800


@dataclass(slots=True)
class _Service:
    """What arguments of `docker run` come to."""

    lists: dict[str, list[Value]] = field(default_factory=dict[str, "list[Value]"])
    single: dict[str, Value] = field(default_factory=dict[str, Value])

    def add(self, key: str, value: Value) -> None:
        self.lists.setdefault(key, []).append(value)


def text(services: Mapping[str, Composed], *, heading: str) -> str:
    """The file; `heading` is its first lines, as a comment."""
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    document: Value = {"services": {name: _service(one) for name, one in services.items()}}
    return "\n".join([*lines, *_yaml(document, 0)]) + "\n"


def _service(one: Composed) -> Value:
    spec = one.spec
    found = _arguments(spec.arguments)
    options = ("label=disable", "no-new-privileges")
    found.lists["security_opt"] = [*options, *found.lists.get("security_opt", [])]
    for mount in spec.mounts:
        found.add("volumes", f"{mount.source}:{mount.target}{'' if mount.writable else ':ro'}")
    made: dict[str, Value] = {
        "image": spec.image,
        "container_name": spec.name,
        "restart": "unless-stopped",
        "network_mode": "host",
        **({"shm_size": spec.shm_size} if spec.shm_size else {}),
        "ulimits": _ULIMITS,
        **found.single,
        **found.lists,
        "environment": dict(spec.environment),
        **({"entrypoint": [spec.entrypoint]} if spec.entrypoint else {}),
        "command": list(spec.command),
        "logging": {"driver": "json-file", "options": {"max-size": "50m", "max-file": "3"}},
    }
    if one.health:
        made["healthcheck"] = _health(one)
    if one.after:
        made["depends_on"] = {name: {"condition": "service_healthy"} for name in one.after}
    return made


def _health(one: Composed) -> Value:
    ask = f"import urllib.request as u; u.urlopen('{one.health}', timeout=5)"
    return {
        "test": ["CMD", "python3", "-c", ask],
        "interval": "10s",
        "timeout": "8s",
        "retries": 3,
        "start_period": f"{one.start_s}s",
    }


def _arguments(arguments: Sequence[str]) -> _Service:
    """The flags that ways of handing cards over use; one that is not known is not left out."""
    found = _Service()
    words = iter(arguments)
    for word in words:
        if word == "--privileged":
            found.single["privileged"] = True
            continue
        flag, equals, value = word.partition("=")
        if not equals:
            value = next(words, "")
        if flag in _LISTS:
            found.add(_LISTS[flag], value)
        elif flag in _SINGLE:
            found.single[_SINGLE[flag]] = value
        elif flag == "--gpus":
            found.single["deploy"] = _gpus(value)
        elif flag == "--mount":
            found.add("volumes", _mount(value))
        else:
            raise UsageError(
                f"{word}: not a flag that is known here how to write for Compose",
                hint="leave it out of EXTRA_DOCKER_ARGS and add it to the file by hand",
            )
    return found


def _gpus(value: str) -> Value:
    cards = value.strip('"').removeprefix("device=")
    which: dict[str, Value] = (
        {"count": "all"} if cards == "all" else {"device_ids": cards.split(",")}
    )
    device: dict[str, Value] = {"driver": "nvidia", **which, "capabilities": ["gpu"]}
    return {"resources": {"reservations": {"devices": [device]}}}


def _mount(value: str) -> Value:
    pairs = (part.partition("=") for part in value.split(","))
    parts = {key: text for key, _, text in pairs}
    made: dict[str, Value] = {
        key: parts[key] for key in ("type", "source", "target") if key in parts
    }
    return {**made, "read_only": True} if "readonly" in parts else made


def _yaml(value: Value, depth: int) -> list[str]:
    """Every text in double quotes, whose rules are JSON's; Compose would expand a dollar."""
    indent = "  " * depth
    if isinstance(value, Mapping):
        lines: list[str] = []
        for key, inner in value.items():
            lines += _entry(f"{indent}{_key(key)}:", inner, depth)
        return lines
    if isinstance(value, Sequence) and not isinstance(value, str):
        lines = []
        for inner in value:
            if isinstance(inner, Mapping):
                first, *rest = _yaml(inner, depth + 1)
                lines += [f"{indent}- {first.strip()}", *rest]
            else:
                lines.append(f"{indent}- {_scalar(inner)}")
        return lines
    return [f"{indent}{_scalar(value)}"]


def _entry(head: str, inner: Value, depth: int) -> list[str]:
    if isinstance(inner, (str, bool, int)):
        return [f"{head} {_scalar(inner)}"]
    if not inner:
        return [f"{head} {'{}' if isinstance(inner, Mapping) else '[]'}"]
    return [head, *_yaml(inner, depth + 1)]


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _scalar(value: Value) -> str:
    if isinstance(value, str):
        return json.dumps(value.replace("$", "$$"), ensure_ascii=False)
    return json.dumps(value)
