"""`up` refuses a stored service that has no room now, and asks about no other."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.plan.builders import wanted
from tests.plan.service_builders import MODEL, group, running
from tests.plan.test_service_capacity import GIB, LLAMA_8B, SIZE, asked, decide, fleet, unlike
from vllmdeploy.plan import service_stored
from vllmdeploy.plan.service_stored import asking_weights, to_consider
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.tools.vllm_measured import Measured
from vllmdeploy.tools.vllm_services import Stored

FOLDER = "/models/m"


def kept(what: ServiceWanted) -> dict[str, Stored]:
    """As it was stored when its cards were large enough."""
    one = decide(what, fleet(80))
    content = one.file.content()
    name = one.service.name
    return {name: Stored(file=f"{name}.json", content=content, service=one.service)}


def told(found: FoundServices) -> tuple[str, ...]:
    what = replace(wanted(), model_path="/models")
    models = {FOLDER: replace(MODEL, config=LLAMA_8B)}
    return tuple(service_stored.reasons(what, found, models, {FOLDER: SIZE}))


def test_the_words_are_those_of_a_start() -> None:
    stored = kept(asked(1, max_model_len=4096))
    assert told(fleet(16, stored=stored)) == (
        "service m: does not fit: 16.0 GiB of weights on 1 card of 16 GiB: the weights and what"
        " vLLM needs beside them leave no room for a cache; it would with TP 2",
    )
    assert told(fleet(24, stored=stored)) == ()


def test_without_ray_the_cards_of_each_engine_decide() -> None:
    what = asked(1, max_model_len=65536)
    made = decide(what, unlike([80], [80])).service
    content = json.dumps({"name": "m", "argv": ["vllm"], "service": made.document()}).encode()
    second = replace(made, name="m.2", replica_of="m", placement={"gpu-02": (0,)})
    both = {
        "m": Stored(file="m.json", content=content, service=made),
        "m.2": Stored(file="m.2.json", content=content, service=second),
    }
    assert told(replace(unlike([80], [80]), stored=both)) == ()
    where = "service m: does not fit: 16.0 GiB of weights on 1 card of 24 GiB: "
    (reason,) = told(replace(unlike([80], [24]), stored=both))
    assert reason.startswith(where)
    (reason,) = told(replace(unlike([24], [80]), stored=both))
    assert reason.startswith(where)
    alike = replace(unlike([24], [24]), stored=both)
    assert len(told(alike)) == 1
    # What runs has proved itself, and others on cards that are as large.
    assert told(replace(alike, engines=running("m"))) == ()
    assert len(told(replace(unlike([80], [24]), stored=both, engines=running("m")))) == 1
    # Of a host that is gone nobody can say what it had.
    assert told(replace(unlike([80], []), stored={"m.2": both["m.2"]})) == ()


def test_what_was_measured_counts_here_too() -> None:
    what = asked(1, max_model_len=4096)
    conditions = decide(what, fleet(24)).conditions
    assert conditions is not None
    little = {conditions.key: Measured(available=GIB // 4)}
    (reason,) = told(replace(fleet(24, stored=kept(what)), measured=little))
    assert "no room for one request of 4096 tokens: give --max-model-len 2048 or less" in reason


def test_weights_that_shrink_while_they_are_loaded_are_counted_as_at_the_start() -> None:
    assert told(fleet(16, stored=kept(asked(1, max_model_len=2048, quantization="fp8")))) == ()


def test_another_model_under_its_name_that_does_not_divide_is_refused() -> None:
    stored = kept(asked(2, max_model_len=2048))
    config = json.dumps({**json.loads(LLAMA_8B), "num_attention_heads": 31})
    what = replace(wanted(), model_path="/models/")
    models = {FOLDER: replace(MODEL, config=config)}
    reasons = tuple(service_stored.reasons(what, fleet(80, stored=stored), models, {}))
    assert len(reasons) == 1
    assert reasons[0].startswith("service m: ")


def test_only_what_does_not_run_on_cards_of_known_memory_is_asked_about() -> None:
    stored = kept(asked(1, max_model_len=2048))
    assert [one.file for one in to_consider(fleet(24, stored=stored))] == ["m.json"]
    assert to_consider(fleet(24, stored=stored, engines=running("m"))) == ()
    assert to_consider(fleet(None, stored=stored)) == ()
    assert to_consider(group(stored={"x": Stored(file="x.json", content=b"{")})) == ()


def test_the_image_is_asked_where_no_node_runs() -> None:
    head = fleet(24).head.found
    what = replace(wanted(), docker_arguments=("-v", "/py:/py:ro"))
    command = asking_weights(what, head, FOLDER, "python3", "-c", "print(1)", FOLDER)
    assert head.image is not None
    assert str(command) == (
        "docker run --rm --network none --security-opt label=disable -v /py:/py:ro"
        f" -v {FOLDER}:{FOLDER}:ro --entrypoint python3 {head.image.id}"
        f" -c 'print(1)' {FOLDER}"
    )
    lacking = replace(head, image=None)
    assert asking_weights(what, lacking, FOLDER, "python3", "-c", "print(1)") is None
    inside = replace(what, runtime="process", python="/venv/python")
    assert str(asking_weights(inside, lacking, FOLDER, "python3", "-c", "1")) == "/venv/python -c 1"


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff"])
def test_a_file_that_is_none_has_no_command_line(content: bytes) -> None:
    assert Stored(file="x.json", content=content).argv == ()
