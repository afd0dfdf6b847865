"""The wardens' status files of a host, read through a real shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllmdeploy.core.command import Result
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.tools.warden import Warden, ray_missing, statuses

UNREADABLE = Warden(state="unreadable", reason="its status file is not readable")


def write(folder: Path, node: str, document: str) -> None:
    (folder / node).mkdir()
    (folder / node / "status.json").write_text(document, "utf-8")


def test_every_node_of_a_host_is_read(tmp_path: Path) -> None:
    ray = {"state": "crash-loop", "reason": "ray exited 1", "since": 1.5, "restarts": 5}
    write(tmp_path, "vllm-ray-head", json.dumps({"ray": ray}))
    write(tmp_path, "other", "{half")
    (tmp_path / "empty").mkdir()
    fact = statuses(str(tmp_path))
    found = fact.parse(LocalShell("here").run(fact.command))
    head = found["vllm-ray-head"]
    assert set(found) == {"vllm-ray-head", "other"}
    assert (head.state, head.reason, head.restarts) == ("crash-loop", "ray exited 1", 5)
    assert head.since_s > 1_000_000_000
    assert found["other"] == UNREADABLE


def test_a_host_without_nodes_has_none(tmp_path: Path) -> None:
    fact = statuses(f"{tmp_path}/no/such")
    assert fact.parse(LocalShell("here").run(fact.command)) == {}


@pytest.mark.parametrize(
    ("document", "warden"),
    [
        ('{"ray": {"state": "running", "since": 90}}', Warden(state="running", since_s=10)),
        ('{"ray": {"state": "running", "since": 900}}', Warden(state="running")),
        ('{"ray": {"state": "running", "since": null}}', Warden(state="running")),
        ('{"ray": {"state": "running", "restarts": Infinity}}', Warden(state="running")),
        ('{"ray": {"state": "running", "since": 1' + "0" * 400 + "}}", Warden(state="running")),
        (
            '{"role": "instance", "ray": null, "engines": {"n": {"state": "running", "since": 9}}}',
            Warden(state="running", since_s=91),
        ),
        ('{"role": "instance", "ray": null, "engines": {}}', UNREADABLE),
        ('{"ray": ["state"]}', UNREADABLE),
        ('{"ray": {}}', UNREADABLE),
        ("[" * 100_000, UNREADABLE),
        ("", UNREADABLE),
    ],
)
def test_a_status_is_read_or_said_to_be_unreadable(document: str, warden: Warden) -> None:
    said = Result(0, f"@@now@@100\n@@node@@n\n{document}")
    assert statuses("/r").parse(said) == {"n": warden}


@pytest.mark.parametrize(
    ("result", "missing"),
    [
        (Result(0, '{"ray": {"state": "running"}}'), None),
        (Result(0, '{"ray": {"state": "starting"}}'), "starting"),
        (Result(3, '{"ray": {"state": "failed", "reason": "exit 1"}}'), "failed: exit 1"),
        (Result(1, "", "No such container: x\n"), "No such container: x"),
        (Result(0, '{"ray": [1]}'), '{"ray": [1]}'),
        (Result(0), "(no output)"),
    ],
)
def test_a_nodes_own_word_says_what_is_missing(result: Result, missing: str | None) -> None:
    assert ray_missing(result) == missing


JSON = st.recursive(
    st.none() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["ray", "since", "restarts", "state"]), inner)
    ),
)


@given(st.one_of(st.text(), JSON.map(json.dumps)), st.text())
def test_no_text_ends_the_reading(text: str, clock: str) -> None:
    statuses("/r").parse(Result(0, f"@@now@@{clock}\n@@node@@n\n{text}"))
    statuses("/r").parse(Result(0, text))
    ray_missing(Result(0, text))
