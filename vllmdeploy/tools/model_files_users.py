"""Which stored services need which model: a spec that names its folder keeps it from removal."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import cast

from vllmdeploy.core.command import Result, script
from vllmdeploy.core.fact import Fact

# No line of a JSON text can begin like this.
_MARK = "@@spec "
_SPECS = """
for path in "$1"/*.json; do
  [ -f "$path" ] || continue
  printf '\\n@@spec %s\\n' "${path##*/}"
  cat "$path"
done
exit 0
"""


def specs(folder: str) -> Fact[Mapping[str, tuple[str, ...]]]:
    """By service, every text in its spec; one that cannot be read has none but its own name."""
    return Fact(
        name=f"services in {folder}",
        command=script(_SPECS, folder, root=True).within(20),
        parse=_parse_specs,
    )


def _parse_specs(result: Result) -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for part in f"\n{result.stdout}".split(f"\n{_MARK}")[1:]:
        file, _, text = part.partition("\n")
        try:
            found[file.removesuffix(".json")] = tuple(_texts(json.loads(text)))
        except (ValueError, RecursionError):
            found[file.removesuffix(".json")] = ()
    return found


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in cast("dict[str, object]", value).values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in cast("list[object]", value):
            yield from _texts(each)


def users(folder: str, known: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The services whose spec names this folder or something in it."""
    inside = f"{folder}/"
    return tuple(
        sorted(
            name
            for name, texts in known.items()
            if any(text == folder or inside in f"{text}/" for text in texts)
        )
    )
