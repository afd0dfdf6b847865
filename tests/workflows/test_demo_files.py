"""The demo's settings are ones that this tool itself accepts, whatever ports are in use."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllmdeploy.cli.context import World
from vllmdeploy.workflows import demo


@pytest.mark.parametrize("taken", range(26000, 26014))
def test_a_port_that_is_in_use_leaves_a_gap_and_no_clash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    def free_ports(count: int) -> list[int]:
        return [port for port in range(26000, 26000 + count + 1) if port != taken][:count]

    monkeypatch.setattr(demo, "free_ports", free_ports)
    config = demo.demo_files(tmp_path, demo.engine_of(tmp_path))
    settings = World(config=config, environ={}).loaded().settings
    assert taken not in (settings.api_port, settings.ray_port)
