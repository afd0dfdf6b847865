"""How the services of a group span hosts: by Ray, or by vLLM's own ranks without it."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.plan.observed import FoundHost
from vllmdeploy.plan.wanted import Executor, Wanted


def executor_of(wanted: Wanted, members: Sequence[FoundHost]) -> Executor:
    """`auto` is Ray, except where it is known that the image has none."""
    if wanted.executor != "auto":
        return wanted.executor
    contents = [one.contents for one in members if one.contents and not one.contents.problem]
    return "mp" if contents and not any(one.ray for one in contents) else "ray"


def about_executor(wanted: Wanted, group: str, executor: Executor) -> tuple[str, ...]:
    """That `auto` had to choose is said."""
    if wanted.executor != "auto" or executor == "ray":
        return ()
    return (
        f"group {group}: its image has no Ray: services span hosts by vLLM's own ranks"
        " (EXECUTOR=mp); `vllmdeploy image build` makes an image with Ray",
    )
