"""The tar that a build is given: whole, in pieces, whatever the files are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from vllmdeploy.effects import template
from vllmdeploy.effects.build_context import feed, wheels_in
from vllmdeploy.effects.shell import Feed
from vllmdeploy.errors import UsageError


def drained(more: Feed) -> bytes:
    return b"".join(iter(lambda: more() or b"", b""))


def test_every_file_is_in_it_as_it_is(tmp_path: Path) -> None:
    big = tmp_path / "big.whl"
    big.write_bytes(bytes(range(256)) * 3000)
    empty = tmp_path / "empty.whl"
    empty.touch()
    more = feed({"Dockerfile": b"FROM x\n"}, {"wheels/big.whl": big, "wheels/empty.whl": empty})
    content = drained(more)
    assert more() == b""
    assert len(content) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        found = {one.name: (tar.extractfile(one) or io.BytesIO()).read() for one in tar}
    assert found == {
        "Dockerfile": b"FROM x\n",
        "wheels/big.whl": big.read_bytes(),
        "wheels/empty.whl": b"",
    }


def test_a_file_that_shrinks_while_it_is_read_ends_the_build(tmp_path: Path) -> None:
    big = tmp_path / "big.whl"
    big.write_bytes(bytes(600_000))
    more = feed({}, {"big.whl": big})
    assert more()
    assert more()
    big.write_bytes(b"")
    with pytest.raises(UsageError, match=r"big\.whl became shorter while it was read"):
        drained(more)


def test_only_wheels_are_taken_and_in_one_order(tmp_path: Path) -> None:
    for name in ("b.whl", "a.whl", "c.tar.gz"):
        (tmp_path / name).touch()
    assert [path.name for path in wheels_in(tmp_path)] == ["a.whl", "b.whl"]


@pytest.mark.parametrize("name", ["Dockerfile.ray", "Dockerfile.cpu", "add.sh", "cpu_engine.sh"])
def test_the_files_of_a_build_are_there_as_they_are(name: str) -> None:
    assert template.raw(f"image/{name}").startswith(b"#")
