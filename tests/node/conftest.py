from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from tests.node.wardens import Node


@pytest.fixture
def make_node(tmp_path: Path) -> Generator[Callable[[str], Node], None, None]:
    made: list[Node] = []

    def make(name: str) -> Node:
        made.append(Node(tmp_path, name))
        return made[-1]

    yield make
    for node in made:
        node.clear()


@pytest.fixture
def node(make_node: Callable[[str], Node]) -> Node:
    return make_node("node")
