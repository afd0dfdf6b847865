"""The warden's status files on a host, as they are read from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vllmdeploy.core.command import Result, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.core.reading import count, fields, json_object, number, whole
from vllmdeploy.errors import last_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Warden:
    """What a node's warden says of its Ray, of itself where it has none, or of its one engine where
    that is all it has; `since_s` is the age of that by the host's own clock."""

    state: str = ""
    reason: str = ""
    since_s: float = 0.0
    restarts: int = 0
    without_ray: bool = False


_STATUSES = """
date +@@now@@%s
for file in "$1"/*/status.json; do
  [ -r "$file" ] || continue
  folder=${file%/*}
  printf '@@node@@%s\\n' "${folder##*/}"
  cat "$file"
done
exit 0
"""


def _parse_statuses(result: Result) -> dict[str, Warden]:
    _, _, said = result.stdout.partition("@@now@@")
    clock, _, rest = said.partition("\n")
    now = float(whole(clock) or 0)
    found: dict[str, Warden] = {}
    for part in rest.split("@@node@@")[1:]:
        name, _, document = part.partition("\n")
        found[name] = _warden(document, now)
    return found


def _warden(document: str, now: float) -> Warden:
    status = json_object(document) or {}
    alone = status.get("role") == "instance"
    engine = next(iter(fields(status.get("engines")).values()), None)
    ray = fields(engine if alone else status.get("ray"))
    if "ray" in status and status["ray"] is None and not alone:
        return Warden(
            state="running",
            since_s=max(0.0, now - (number(status.get("started_at")) or now)),
            without_ray=True,
        )
    if not ray:
        return Warden(state="unreadable", reason="its status file is not readable")
    return Warden(
        state=str(ray.get("state", "")),
        reason=str(ray.get("reason") or ""),
        since_s=max(0.0, now - (number(ray.get("since")) or now)),
        restarts=count(ray.get("restarts")),
    )


def statuses(runs: str) -> Fact[Mapping[str, Warden]]:
    """Every node of a host by name: `runs` is the state folder's `run`."""
    return Fact(
        name="wardens",
        command=script(_STATUSES, runs, root=True).within(10),
        parse=_parse_statuses,
    )


def ray_missing(result: Result) -> str | None:
    """What a node's own warden still waits for; None when its Ray runs, or it answers without."""
    status = json_object(result.stdout) or {}
    child = fields(status.get("ray"))
    if not child and "state" in status:
        return None
    if not child:
        return last_line(result.output)
    if child.get("state") == "running":
        return None
    return ": ".join(str(said) for said in (child.get("state"), child.get("reason")) if said)
