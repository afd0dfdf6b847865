"""What vendors' text tables share: a version, two rows a card, processes below."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from vllmdeploy.accelerators import reading
from vllmdeploy.accelerators.asking import answers, complaint, text_of, unreadable
from vllmdeploy.core.card import Card, CardProcess, CardReport
from vllmdeploy.core.command import Result

Row = tuple[str, ...]
_HEAT = re.compile(r"(?:^|\s)(-?\d{1,3})C\b")


def report(
    vendor: str,
    tool: str,
    result: Result,
    *,
    cards: Callable[[str], Iterator[Card]],
    version: re.Pattern[str],
    process: re.Pattern[str] | None = None,
) -> CardReport:
    """From the answer to `cards`: its cards with their processes, or why there are none."""
    said = answers(result)
    text = text_of(said, "cards")
    found = tuple(cards(text))
    if process:
        held = holders(text, process)
        found = tuple(replace(card, processes=held.get(card.index, ())) for card in found)
    problem = complaint(tool, said.get("cards"), result)
    driver = version.search(text)
    return CardReport(
        vendor=vendor,
        cards=found,
        driver_version=reading.words(driver[1]) if driver else "",
        problem=problem or ("" if found else unreadable(tool, text)),
    )


def holders(text: str, process: re.Pattern[str]) -> Mapping[int, tuple[CardProcess, ...]]:
    """By card. The pattern's groups are: card, pid, name, MiB."""
    found: dict[int, tuple[CardProcess, ...]] = {}
    for line in text.splitlines():
        if row := process.match(line.strip()):
            index = int(row[1])
            one = CardProcess(
                pid=int(row[2]), name=reading.words(row[3]), memory_mib=reading.amount(row[4])
            )
            found[index] = (*found.get(index, ()), one)
    return found


def two_rows(
    text: str, *, begins: Callable[[Row], bool], ends: Callable[[Row], bool]
) -> Iterator[tuple[Row, Row]]:
    above: Row = ()
    for row in reading.cells(text):
        if begins(row):
            above = row
        elif above and ends(row):
            yield above, row
            above = ()


def temperature(cell: str) -> int | None:
    found = _HEAT.search(cell)
    return int(found[1]) if found else None
