"""Answers of vendor tools as their facts receive them."""

from __future__ import annotations

from vllmdeploy.core.command import Result


def answered(**sections: str | tuple[str, int]) -> Result:
    """What the asking script prints: each section between marks, with its exit status."""
    text = ""
    for name, said in sections.items():
        words, status = said if isinstance(said, tuple) else (said, 0)
        text += f"@@ {name}\n{words}\n\n@@ end {status}\n"
    return Result(0, text)


def hung(**before: str) -> Result:
    """The last section began and never ended."""
    text = answered(**before).stdout if before else ""
    return Result(124, f"{text}@@ cards\n", timed_out=True)
