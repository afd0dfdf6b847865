"""`image build`."""

from __future__ import annotations

import typer

from vllmdeploy.errors import UsageError
from vllmdeploy.workflows.session import Session


def usual_image(session: Session) -> str:
    """IMAGE of the head's group."""
    image = session.wanted.groups[session.lead.group].image
    if not image:
        raise UsageError("which image? IMAGE is not set", hint="name it: `image push NAME`")
    return image


def build(context: typer.Context) -> None:
    """x"""
