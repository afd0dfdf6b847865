"""Where an engine's ranks are: the placement group of its driver, as Ray's dashboard has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from vllmdeploy.core.reading import count, fields, json_object

JOBS = "/api/v0/jobs?limit=10000"
# Bundles, which say where a group lies, are among its details only.
GROUPS = "/api/v0/placement_groups?detail=1&limit=10000"
_CARDS = ("GPU", "NPU", "HPU")


def cards_by_driver(
    jobs: str, groups: str, names: Mapping[str, str]
) -> Mapping[int, Mapping[str, int]]:
    """Cards by host, by the process that asked Ray for them. `names`: of nodes, by their ids."""
    by_job: dict[str, Counter[str]] = {}
    for group in _rows(groups):
        if group.get("state") == "CREATED":
            cards = by_job.setdefault(str(group.get("creator_job_id")), Counter())
            for bundle in _objects(group.get("bundles")):
                node = str(bundle.get("node_id"))
                cards[names.get(node, node)] += _cards(bundle)
    found: dict[int, Mapping[str, int]] = {}
    for job in _rows(jobs):
        pid = str(fields(job.get("driver_info")).get("pid", ""))
        placed = +by_job.get(str(job.get("job_id")), Counter[str]())  # hosts with cards only
        if pid.isdecimal() and placed:
            found[int(pid)] = dict(sorted(placed.items()))
    return found


def _cards(bundle: Mapping[str, Any]) -> int:
    resources = fields(bundle.get("unit_resources"))
    return sum(count(resources.get(name)) for name in _CARDS)


def _rows(text: str) -> list[dict[str, Any]]:
    answer = fields(fields(json_object(text)).get("data"))
    return _objects(fields(answer.get("result")).get("result"))


def _objects(value: object) -> list[dict[str, Any]]:
    return [fields(one) for one in cast("list[object]", value)] if isinstance(value, list) else []
