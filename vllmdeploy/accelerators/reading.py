"""Numbers, identities and table cells out of what vendor tools print."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

_NUMBER = re.compile(r"\s*(-?\d{1,15}(?:\.\d{1,6})?)")
_USED_OF_TOTAL = re.compile(r"(\d{1,9})\s*(?:MiB|MB)?\s*/\s*(\d{1,9})\s*(?:MiB|MB)?")
_ADDRESS = re.compile(r"([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})\.([0-7])")
_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


def number(value: object) -> int | None:
    """`512 MiB`, `7%`, `91.0`, 16: the whole number it begins with. `[N/A]`, `-`, ``: None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    found = _NUMBER.match(str(value))
    return round(float(found[1])) if found else None


def amount(value: object) -> int | None:
    """A number that counts something: never below zero."""
    found = number(value)
    return found if found is not None and found >= 0 else None


def mebibytes(value: object) -> int | None:
    """Bytes to MiB."""
    found = amount(value)
    return None if found is None else found // 2**20


def used_and_total(cell: str) -> tuple[int | None, int | None]:
    """`826/65536 MiB`, `41697/ 65536`, `0 MiB/ 23374 MiB`."""
    found = _USED_OF_TOTAL.search(cell)
    return (int(found[1]), int(found[2])) if found else (None, None)


def bus_id(text: str) -> str:
    """A PCI address as /sys writes it: four digits of domain, small letters; or nothing."""
    found = _ADDRESS.search(text)
    if not found:
        return ""
    domain, bus, device, function = found.groups()
    return f"{int(domain, 16):04x}:{bus}:{device}.{function}".lower()


def identity(value: object) -> str:
    """A uuid or serial number that may go into a command, or nothing."""
    text = str(value).strip()
    return text if _IDENTITY.fullmatch(text) and text not in ("N/A", "None") else ""


def words(value: object) -> str:
    """A name fit to be shown on one line, or nothing where the tool had none."""
    text = " ".join(str(value).split())
    shown = "".join(letter for letter in text if letter.isprintable())[:120]
    return "" if shown in ("N/A", "[N/A]", "None", "unknown") else shown


def cells(text: str) -> Iterator[tuple[str, ...]]:
    """The rows of a table drawn with bars, without its frames."""
    for line in text.splitlines():
        if line.strip().startswith("|"):
            yield tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one in place of anything else."""
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def sequence(value: object) -> Sequence[object]:
    """A JSON array, or an empty one in place of anything else."""
    return cast("Sequence[object]", value) if isinstance(value, list) else ()
