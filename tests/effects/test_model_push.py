"""A head without internet: downloaded here, pushed there through a real sshd."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.hub_server import HubRepo, hub_server
from tests.support.sshd import Sshd, require_sshd, sshd
from vllmdeploy.cli.context import World
from vllmdeploy.cli.model import app
from vllmdeploy.errors import UsageError

FILES = {
    "config.json": b"{}",
    'sub/it\'s "a" b.txt': b"odd name",
    "model.safetensors": bytes(range(256)) * 80_000,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    require_sshd()
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


class Remote:
    """A head behind SSH; its MODEL_PATH is a folder that only it writes."""

    def __init__(self, folder: Path, server: Sshd, endpoint: str) -> None:
        self.models = folder / "head" / "models"
        self.staging = folder / "staging"
        self.config = folder / "config.env"
        self.config.write_text(
            f"HEAD_HOST=root@127.0.0.1:{server.port}\nSSH_KEY={server.key}\n"
            f"SSH_KNOWN_HOSTS={server.known_hosts}\nMODEL_PATH={self.models}\n"
            f"HF_ENDPOINT={endpoint}\nCLUSTER_NAME=test-push\n"
        )

    def run(self, *words: str) -> Any:
        world = World(config=self.config, json=True, environ=dict(os.environ))
        result = CliRunner().invoke(app, words, obj=world, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    def download(self, *more: str) -> Any:
        staging = ("--via", "control", "--staging", str(self.staging))
        return self.run("download", "owner/model", *staging, "--yes", "--no-sync", *more)


def test_a_head_elsewhere_gets_the_model_and_nothing_stays_here(
    tmp_path: Path, server: Sshd
) -> None:
    with hub_server(owner__model=HubRepo(FILES)) as hub:
        remote = Remote(tmp_path, server, hub.endpoint)
        with pytest.raises(UsageError, match="--via control"):
            remote.run("download", "owner/model", "--yes", "--no-sync")
        assert not remote.models.exists()
        done = remote.download()
    assert {path: (remote.models / "model" / path).read_bytes() for path in FILES} == FILES
    (found,) = remote.run("list")["models"]
    assert (found["digest"], next(iter(found["hosts"].values()))["state"]) == (
        done["digest"],
        "ready",
    )
    assert not (remote.staging / "model").exists()


def test_a_push_goes_on_where_it_ended_and_wrong_bytes_are_sent_again(
    tmp_path: Path, server: Sshd
) -> None:
    with hub_server(owner__model=HubRepo(FILES)) as hub:
        remote = Remote(tmp_path, server, hub.endpoint)
        incoming = remote.models / ".incoming" / "model"
        incoming.mkdir(parents=True)
        half = FILES["model.safetensors"][:10_000_000]
        (incoming / "model.safetensors").write_bytes(b"x" + half[1:])
        (incoming / "config.json").write_bytes(b"much too long")
        remote.download()
    assert {path: (remote.models / "model" / path).read_bytes() for path in FILES} == FILES
