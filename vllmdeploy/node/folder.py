"""Reads the folder of engine spec files into what should run on this node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vllmdeploy.node.spec import BadSpec, ChildSpec, parse_engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """`sources` says which file each engine came from; `problems` is by file name."""

    specs: Mapping[str, ChildSpec] = field(default_factory=dict[str, ChildSpec])
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: Mapping[str, str] = field(default_factory=dict[str, str])


def read(folder: Path, node: str, before: Wanted) -> Wanted:
    """A file that became unreadable keeps the engine it last described; one that is gone does not.

    Stopping a model because of a typo would be worse than running the old one and saying so.
    """
    specs: dict[str, ChildSpec] = {}
    sources: dict[str, str] = {}
    problems: dict[str, str] = {}
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        paths = []
    except OSError as error:
        words = f"cannot be listed: {error.strerror or error}"
        return replace(before, problems={str(folder): words})
    for path in paths:
        file = path.name
        spec: ChildSpec | None
        try:
            spec = parse_engine(path.read_text("utf-8"))
        except FileNotFoundError:  # removed between the listing and now
            continue
        except (OSError, UnicodeError, BadSpec) as error:
            problems[file] = str(error)
            spec = _described_before(file, before)
        if spec is None or spec.node not in ("", node):
            continue
        if spec.name in specs:
            problems[file] = f"name: {spec.name!r} is taken by {sources[spec.name]}"
            continue
        specs[spec.name] = spec
        sources[spec.name] = file
    return Wanted(specs=specs, sources=sources, problems=problems)


def _described_before(file: str, before: Wanted) -> ChildSpec | None:
    known = (before.specs[name] for name, source in before.sources.items() if source == file)
    return next(known, None)
