from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.fact import Fact
from vllmdeploy.tools import vllm_ask
from vllmdeploy.tools.vllm_model import FoundModel, Quantization, folder, own_method, quantization
from vllmdeploy.tools.vllm_services import Service, name_fault, stored

SERVICE = Service(
    name="m", model="m", names=("m", "org/m"), port=8100, tensor_parallel=2, pipeline_parallel=2
)


def run(command: Command) -> Result:
    done = subprocess.run(command.argv, capture_output=True, text=True, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def asked(path: Path) -> FoundModel:
    fact: Fact[FoundModel] = folder(str(path))
    return fact.parse(run(fact.command))


def test_a_folder_that_is_not_there_or_holds_no_model_says_so(tmp_path: Path) -> None:
    assert asked(tmp_path / "none").problem == "not there"
    assert asked(tmp_path).problem == "no model: its folder has no config.json"


def test_a_plain_folder_with_a_config_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert asked(tmp_path) == FoundModel(there=True, config='{"a": 1}')
    assert asked(tmp_path).problem == ""


def test_a_managed_model_needs_its_ready_marker(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".vllmdeploy").mkdir()
    (tmp_path / ".vllmdeploy/MANIFEST.json").write_text("{}")
    assert asked(tmp_path).problem == "not complete: it has a manifest and no READY marker"
    (tmp_path / ".vllmdeploy/READY").write_text("d" * 64 + "\n")
    assert (asked(tmp_path).problem, asked(tmp_path).digest) == ("", "d" * 64)


@pytest.mark.parametrize(
    ("config", "method"),
    [
        ('{"quantization_config": {"quant_method": "awq"}}', "awq"),
        ('{"compression_config": {"quant_method": "compressed-tensors"}}', "compressed-tensors"),
        ('{"quantization_config": null}', ""),
        ('{"quantization_config": "x"}', ""),
        ("{}", ""),
        ("[]", ""),
        ("broken", ""),
    ],
)
def test_how_a_checkpoint_was_quantized(config: str, method: str) -> None:
    assert own_method(config) == method


METHODS = ("awq", "fp8", "int8_per_channel_weight_only")


@pytest.mark.parametrize(
    ("wanted", "own", "method"),
    [
        ("none", "", ""),
        ("int8", "", "int8_per_channel_weight_only"),
        ("int8", "awq", ""),
        ("fp8", "", "fp8"),
        ("awq", "", "awq"),
    ],
)
def test_the_method_that_fits(wanted: str, own: str, method: str) -> None:
    assert quantization(wanted, own, METHODS) == Quantization(method)


def test_what_this_vllm_cannot_do_names_the_checkpoint_to_get() -> None:
    assert quantization("int4", "", METHODS).refusal == (
        "QUANTIZATION=int4: this vLLM cannot do that to plain weights; get an AWQ or GPTQ int4"
        " checkpoint (methods it has: awq, fp8, int8_per_channel_weight_only)"
    )
    assert "get a checkpoint quantized beforehand" in quantization("marlin", "", ()).refusal


def test_a_service_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    later = {**SERVICE.document(), "key_of_a_later_version": 1}
    (tmp_path / "m.json").write_text(json.dumps({"name": "m", "service": later}))
    (tmp_path / "hand.json").write_text('{"name": "hand", "argv": ["x"]}')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "notes.txt").write_text("not one")
    fact = stored(str(tmp_path))
    found = fact.parse(run(fact.command))
    assert {name: one.service for name, one in found.items()} == {
        "m": SERVICE,
        "hand": None,
        "broken": None,
    }
    assert found["hand"].problem == "hand.json: not a service of ours: 'service'"
    assert json.loads(found["m"].content)["name"] == "m"


def test_no_folder_means_no_services(tmp_path: Path) -> None:
    fact = stored(str(tmp_path / "none"))
    assert fact.parse(run(fact.command)) == {}


def test_a_service_holds_a_card_for_each_rank_and_has_an_address() -> None:
    assert (SERVICE.world, SERVICE.url) == (4, "http://127.0.0.1:8100")
    six = Service(name="m", model="m", names=("m",), port=1, host="fd00::1")
    assert six.url == "http://[fd00::1]:1"


@pytest.mark.parametrize("name", ["ray", "warden", "", "a b", "../x", "-x", "x" * 101])
def test_names_that_no_service_can_have(name: str) -> None:
    assert name_fault(name)


def test_a_prompt_becomes_a_request_and_its_stream_texts() -> None:
    assert json.loads(vllm_ask.body("hi", model="m", max_tokens=3)) == {
        "stream": True,
        "max_tokens": 3,
        "prompt": "hi",
        "model": "m",
    }
    assert json.loads(vllm_ask.body("hi", chat=True))["messages"] == [
        {"role": "user", "content": "hi"}
    ]
    lines = ('data: {"text": "a"}', ": comment", "data: [DONE]", 'data: {"usage": {}}', "data: {")
    assert [vllm_ask.text_of(one) for one in lines] == ["a", "", "", "", ""]


def test_a_refusal_is_told_in_its_own_words() -> None:
    assert vllm_ask.refusal_of('{"error": {"message": "no such model"}}') == "no such model"
    assert vllm_ask.refusal_of(" connection refused ") == "connection refused"


def test_the_size_of_the_weight_files_is_known_without_reading_them(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("a.safetensors", "b.safetensors", "old.bin"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    assert asked(tmp_path).weights == 2000
