"""Everything a person or a program sees: words on stderr, answers on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from vllmdeploy.errors import UsageError, VllmdeployError

if TYPE_CHECKING:
    from vllmdeploy.core.plan import Plan, Step
    from vllmdeploy.effects.execute import StepOutcome


def say(text: str) -> None:
    """Words for a person, never part of the answer."""
    typer.echo(clean(text), err=True)


def answer(text: str) -> None:
    typer.echo(clean(text))


def document(value: Any) -> None:
    """One JSON document on stdout."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    typer.echo("".join(one if _harmless(one) else json.dumps(one)[1:-1] for one in text))


def clean(text: str) -> str:
    """What hosts say may hold escape sequences; a terminal must not obey them."""
    return "".join(
        letter if _harmless(letter) or letter == "\t" else f"\\x{ord(letter):02x}"
        for letter in text
    )


def _harmless(letter: str) -> bool:
    return letter.isprintable() or letter == "\n"


def clear() -> None:
    """A fresh screen, where there is one."""
    if sys.stdout.isatty():
        sys.stdout.write("\x1b[2J\x1b[H")


def error(problem: VllmdeployError) -> None:
    typer.secho("error: ", fg=typer.colors.RED, bold=True, nl=False, err=True)
    typer.echo(clean(str(problem)), err=True)


def ask_password(question: str) -> str:
    """A password, typed blind."""
    return str(typer.prompt(question, hide_input=True, err=True))


def confirm(question: str, *, yes: bool) -> None:
    """Go on, or leave with exit code 2 and nothing done."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody to ask here: nothing was done", hint="say --yes to go ahead")
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort as left:
        # The end of the input is a no; Ctrl-C is Ctrl-C.
        if isinstance(left.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        agreed = False
    if not agreed:
        raise UsageError("declined: nothing was done")


def step_line(step: Step) -> str:
    return f"# {step.key} ({step.cause})"


def plan_text(plan: Plan) -> str:
    """The contract's form: what and why, then the exact command, and what it is given to read."""
    lines = [f"# note: {note}" for note in plan.notes]
    for step in plan:
        lines += [step_line(step), str(step.command)]
        lines += [f"# < {line}".rstrip() for line in step.command.text.splitlines()]
    return "\n".join(lines) if plan.steps else "\n".join((*lines, "# nothing to do"))


def plan_document(plan: Plan) -> dict[str, Any]:
    return {"steps": [step_document(step) for step in plan], "notes": list(plan.notes)}


def step_document(step: Step) -> dict[str, Any]:
    return {
        "host": step.host,
        "verb": step.verb,
        "subject": step.subject,
        "cause": step.cause,
        "needs": list(step.needs),
        "argv": list(step.command.argv),
        **({"stdin": step.command.text} if step.command.text else {}),
    }


def outcome_document(outcome: StepOutcome) -> dict[str, Any]:
    return {
        **step_document(outcome.step),
        "outcome": outcome.outcome.value,
        "seconds": round(outcome.seconds, 3),
        **({"error": outcome.error.message} if outcome.error else {}),
        **({"because": outcome.because} if outcome.because else {}),
    }


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the last one is not padded."""
    from rich.cells import cell_len  # what a terminal needs for it: CJK letters are two wide

    cells = [[" ".join(clean(cell).split()) for cell in row] for row in (headings, *rows)]
    widths = [max(cell_len(row[column]) for row in cells) for column in range(len(headings))]
    return "\n".join(
        "  ".join(
            cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True)
        ).rstrip()
        for row in cells
    )
