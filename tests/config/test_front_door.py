"""Which URL the API has."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllmdeploy.config.front_door import api_url
from vllmdeploy.config.settings import load


@pytest.mark.parametrize(
    ("lines", "nodes", "url"),
    [
        pytest.param("", "", "http://localhost:8000", id="this machine"),
        pytest.param("HEAD_HOST=root@gpu-01", "", "http://gpu-01:8000", id="HEAD_HOST"),
        pytest.param("", "gpu-02\ngpu-01 head=yes", "http://gpu-01:8000", id="the list's head"),
        pytest.param(
            "API_PORT=80",
            "gpu-01 head=yes ip=10.0.0.7",
            "http://10.0.0.7:80",
            id="the fleet's address",
        ),
        pytest.param("HEAD_HOST=[fd00::7]", "", "http://[fd00::7]:8000", id="IPv6"),
        pytest.param(
            "HEAD_HOST=gpu-01\nGATEWAY_HOSTS=web-1,web-2",
            "",
            "http://web-1:8000",
            id="GATEWAY_HOSTS",
        ),
        pytest.param(
            "API_HOST=10.0.0.9", "gpu-01 head=yes", "http://10.0.0.9:8000", id="one address alone"
        ),
    ],
)
def test_the_api_is_where_its_gateway_is(tmp_path: Path, lines: str, nodes: str, url: str) -> None:
    (tmp_path / "config.env").write_text(f"{lines}\n", "utf-8")
    (tmp_path / "worker_nodes.txt").write_text(f"{nodes}\n", "utf-8")
    loaded = load(
        config_path=tmp_path / "config.env", nodes_path=tmp_path / "worker_nodes.txt", environ={}
    )
    assert api_url(loaded.settings, loaded.fleet.offering[0]) == url
