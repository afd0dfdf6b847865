"""A service whose model has no room is refused before anything starts, with what would work."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.plan.builders import lines, wanted
from tests.plan.service_builders import ASKED, MODEL, VLLM, group
from tests.plan.test_service_ranks import without_ray
from vllmdeploy.core.card import Card
from vllmdeploy.core.command import Command
from vllmdeploy.core.plan import Draft
from vllmdeploy.effects.local import LocalShell
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan import service_steps as steps
from vllmdeploy.plan.node import Member
from vllmdeploy.plan.service import DecidedService, decide_service
from vllmdeploy.plan.service_capacity import cards_of, kinds_of, value_of
from vllmdeploy.plan.service_steps import Ground
from vllmdeploy.plan.service_wanted import FoundServices, ServiceWanted
from vllmdeploy.plan.supervise import InDocker
from vllmdeploy.tools.model_weights import weights, weights_argv
from vllmdeploy.tools.safetensors import Tensor, Weights, of_folder
from vllmdeploy.tools.vllm_measured import Conditions, Measured, keep, measured
from vllmdeploy.tools.vllm_services import Stored

GIB = 2**30
Kind = tuple[int, int, float]
"""Cards a host, hosts, GiB of each."""
LLAMA_8B = json.dumps(
    {
        "model_type": "llama",
        "num_attention_heads": 32,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
    }
)
SIZE = Weights(total_bytes=16 * GIB)


def fleet(gib: float | None = 24, size: Weights | None = SIZE, **changes: Any) -> FoundServices:
    """Two hosts of two cards with so much memory each, and a model of 8 billion parameters."""
    model = replace(MODEL, config=LLAMA_8B)
    found = group(models={"gpu-01": model, "gpu-02": model}, weights=size, **changes)
    memory = None if gib is None else int(gib * 1024)
    cards = tuple(Card(index=one, name="A", memory_total_mib=memory) for one in range(2))
    members = tuple(replace(one, share=replace(one.share, cards=cards)) for one in found.members)
    return replace(found, members=members)


def asked(tensor: int = 1, **changes: Any) -> ServiceWanted:
    return replace(ASKED, tensor_parallel=tensor, **changes)


def decide(what: ServiceWanted, found: FoundServices) -> DecidedService:
    return decide_service(wanted(executor=found.head.executor), what, found)


def refused(what: ServiceWanted, found: FoundServices) -> tuple[str, ...]:
    with pytest.raises(PreflightRefused) as caught:
        decide(what, found)
    return tuple(caught.value.reasons)


def test_a_model_that_is_larger_than_its_cards_is_refused_with_a_division_that_holds_it() -> None:
    assert refused(asked(1, max_model_len=4096), fleet(16)) == (
        "does not fit: 16.0 GiB of weights on 1 card of 16 GiB: the weights and what vLLM needs"
        " beside them leave no room for a cache; it would with TP 2",
    )


def test_one_that_no_division_holds_says_so() -> None:
    (reason,) = refused(asked(4), fleet(4))
    assert reason.endswith("; no division over 4 cards makes it fit")


def advised(reason: str) -> int:
    return int(reason.split("--max-model-len ")[1].split()[0].rstrip(","))


def on_each(found: FoundServices, *sizes: float) -> FoundServices:
    """The same hosts, each with cards of so many GiB."""
    return replace(found, members=tuple(with_cards(one, *sizes) for one in found.members))


def with_cards(member: Member, *sizes: float) -> Member:
    cards = tuple(
        Card(index=index, name=f"{size} GiB", memory_total_mib=int(size * 1024))
        for index, size in enumerate(sizes)
    )
    return replace(member, share=replace(member.share, cards=cards))


def test_a_context_that_has_no_room_says_which_has() -> None:
    assert refused(asked(1), fleet(24)) == (
        "does not fit: 16.0 GiB of weights on 1 card of 24 GiB: no room for one request of the"
        " model's whole context (131072 tokens): give --max-model-len 10992 or less, or take TP 2",
    )


@pytest.mark.parametrize(
    "given",
    [{"max_model_len": 131072}, {"arguments": ("--max-model-len", "128K")}],
)
def test_one_that_was_given_is_told_the_same_way_out(given: dict[str, Any]) -> None:
    assert refused(asked(1, **given), fleet(24)) == (
        "does not fit: 16.0 GiB of weights on 1 card of 24 GiB: no room for one request of 131072"
        " tokens: give --max-model-len 10992 or less, or take TP 2",
    )


def test_what_is_advised_is_safe_and_no_token_too_short() -> None:
    (reason,) = refused(asked(1, max_model_len=131072), fleet(24))
    safe = advised(reason)
    assert decide(asked(1, max_model_len=safe), fleet(24)).notes == ()
    (note,) = decide(asked(1, max_model_len=safe + 1), fleet(24)).notes
    assert f"{safe} is safe" in note


def test_where_no_division_holds_it_the_one_that_holds_most_is_named() -> None:
    longer = json.dumps({**json.loads(LLAMA_8B), "max_position_embeddings": 1_048_576})
    model = replace(MODEL, config=longer)
    found = replace(fleet(24), models={"gpu-01": model, "gpu-02": model})
    (reason,) = refused(asked(1, max_model_len=1_000_000), found)
    assert reason.endswith(
        ": give --max-model-len 10992 or less, or take TP 2, --pp 2 and --max-model-len 413584"
    )


def test_one_that_is_only_tight_anywhere_is_named_as_that() -> None:
    (reason,) = refused(asked(4, max_model_len=131072), on_each(fleet(), *[7] * 4))
    assert reason.endswith(
        " one request of 131072 tokens needs more cache than there is (10416 only if nothing else"
        " grows); it is tight, and would be tried, with TP 4 and --pp 2"
    )


def test_tensor_parallel_over_hosts_is_told_where_it_holds_much_more() -> None:
    layers = tuple(
        Tensor(name=f"model.layers.{one}.mlp.up_proj.weight", dtype="BF16", shape=(), size=GIB)
        for one in range(32)
    )
    found = on_each(fleet(size=Weights(total_bytes=32 * GIB, tensors=layers)), 24564 / 1024)
    where = "does not fit: 32.0 GiB of weights on 1 card of 24 GiB: the weights and what vLLM"
    where += " needs beside them leave no room for a cache; it would with "
    one_card = where + "TP 1, --pp 2 and --max-model-len 5456"
    over = "TP 2 over 2 hosts"
    assert refused(asked(1), found) == (f"{one_card}, or with {over} and --max-model-len 11968",)
    assert refused(asked(1, max_model_len=8192), found) == (where + over,)
    assert refused(asked(1, max_model_len=4096), found) == (where + "TP 1 and --pp 2",)
    (reason,) = refused(asked(1, pipeline_parallel=2), found)
    assert reason.endswith(
        ": give --max-model-len 5456 or less, or take TP 2 over 2 hosts, --pp 1 and"
        " --max-model-len 11968"
    )
    (reason,) = refused(asked(2, max_model_len=131072), found)
    assert reason.endswith("131072 tokens: give --max-model-len 11968 or less")
    assert decide(asked(2, max_model_len=11968), found).notes == ()


def unlike(head: Sequence[float], other: Sequence[float]) -> FoundServices:
    """Two hosts without Ray, with cards of so many GiB each."""
    model = replace(MODEL, config=LLAMA_8B)
    found = without_ray(models={"gpu-01": model, "gpu-02": model}, weights=SIZE)
    first, second = found.members
    return replace(found, members=(with_cards(first, *head), with_cards(second, *other)))


def by_ray(found: FoundServices) -> FoundServices:
    members = tuple(
        replace(one, executor="ray", found=ray.found)
        for one, ray in zip(found.members, fleet().members, strict=True)
    )
    return replace(found, members=members)


def test_without_ray_the_cards_that_it_is_placed_on_decide() -> None:
    long = asked(1, max_model_len=65536)
    found = unlike([80], [24])
    decided = decide(long, found)
    assert decided.service.placement == {"gpu-01": (0,)}
    assert decided.conditions is not None
    assert (decided.conditions.card, decided.notes) == ("80 GiB", ())
    (reason,) = refused(long, by_ray(found))
    assert reason.startswith("does not fit: 16.0 GiB of weights on 1 card of 24 GiB: ")
    assert decide(asked(1, max_model_len=4096), by_ray(found)).notes == ()


@pytest.mark.parametrize(
    ("head", "other", "what", "placement"),
    [
        ([24], [80], asked(1, max_model_len=4096), {"gpu-01": (0,)}),
        ([24], [80], asked(1, max_model_len=65536), {"gpu-02": (0,)}),
        ([24, 80], [24], asked(1, max_model_len=65536), {"gpu-01": (1,)}),
        ([14, 14], [24, 24], asked(2, max_model_len=65536), {"gpu-02": (0, 1)}),
        ([14, 24], [24], asked(2, max_model_len=65536), {"gpu-01": (1,), "gpu-02": (0,)}),
        # Tight on the smaller one.
        ([24], [80], asked(1, max_model_len=12_000), {"gpu-02": (0,)}),
        ([24], [22], asked(1, max_model_len=12_000), {"gpu-01": (0,)}),
    ],
)
def test_without_ray_it_goes_where_it_has_room(
    head: Sequence[float],
    other: Sequence[float],
    what: ServiceWanted,
    placement: Mapping[str, tuple[int, ...]],
) -> None:
    assert decide(what, unlike(head, other)).service.placement == placement


def test_where_the_larger_card_is_taken_it_is_said_that_there_is_one() -> None:
    found = unlike([80], [24])
    first = decide(asked(1, max_model_len=65536), found)
    kept = Stored(file="m.json", content=first.file.content(), service=first.service)
    second = asked(1, max_model_len=65536, name="n")
    assert refused(second, replace(found, stored={"m": kept})) == (
        "does not fit: 16.0 GiB of weights on 1 card of 24 GiB: no room for one request of 65536"
        " tokens: give --max-model-len 10992 or less, or take a card of 80 GiB",
    )


def test_of_the_cards_that_it_is_placed_on_the_smallest_decides() -> None:
    both = asked(2, max_model_len=131072)
    assert refused(both, unlike([80], [14])) == (
        "does not fit: 16.0 GiB of weights on 2 cards of 14 GiB: one request of 131072 tokens needs"
        " more cache than there is (39040 only if nothing else grows); it would with TP 1 on a"
        " card of 80 GiB",
    )
    assert refused(both, unlike([80, 14], []))[0].startswith(
        "does not fit: 16.0 GiB of weights on 2 cards of 14 GiB: "
    )


def test_what_one_kind_of_card_had_says_nothing_of_another() -> None:
    what = asked(1, max_model_len=4096)
    found = unlike([80], [24])
    large = decide(what, found).conditions
    small = decide(what, unlike([24], [80])).conditions
    assert large is not None
    assert small is not None
    little = {small.key: Measured(available=GIB // 4)}
    assert decide(what, replace(found, measured=little)).notes == ()
    (reason,) = refused(what, replace(unlike([24], [14]), measured=little))
    assert "give --max-model-len 2048 or less" in reason


@pytest.mark.parametrize(
    ("head", "other", "mp", "ray"),
    [
        ([24] * 2, [24] * 2, [(2, 2, 24)], [(2, 2, 24)]),
        ([24.01] * 2, [23.99] * 2, [(2, 2, 23.99)], [(2, 2, 23.99)]),
        ([80], [24], [(1, 2, 24), (1, 1, 80)], [(1, 2, 24)]),
        ([24] * 4, [24], [(1, 2, 24), (4, 1, 24)], [(1, 2, 24), (4, 1, 24)]),
        ([80, 80, 24], [80], [(1, 2, 24), (3, 1, 24), (1, 2, 80), (2, 1, 80)], None),
    ],
)
def test_cards_that_are_alike_are_counted_together(
    head: Sequence[float], other: Sequence[float], mp: list[Kind], ray: list[Kind] | None
) -> None:
    found = unlike(head, other)
    assert kinds(found) == mp
    assert ray is None or kinds(by_ray(found)) == ray


def kinds(found: FoundServices) -> list[Kind]:
    return [
        (one.per_host, one.hosts, round(one.memory_mib / 1024, 2))
        for one in kinds_of(found.members)
    ]


def test_tensor_parallel_inside_the_host_that_has_more_cards_is_found() -> None:
    (reason,) = refused(asked(1, max_model_len=131072), by_ray(unlike([20] * 4, [20])))
    assert reason.endswith("; it would with TP 4")


def test_a_context_beyond_the_models_own_is_told_what_that_has_room_for() -> None:
    own = "the model's own longest context is 131072 tokens: give --max-model-len"
    assert refused(asked(2, max_model_len=200_000), fleet(80)) == (f"{own} 131072 or less",)
    (reason,) = refused(asked(1, max_model_len=200_000), fleet(24))
    assert reason == f"{own} 10992 or less, or take TP 2 and --max-model-len 131072"


def test_a_division_that_was_measured_is_counted_with_that() -> None:
    found, what = fleet(24), asked(1, max_model_len=131072)
    other = decide(asked(2, max_model_len=4096), found).conditions
    assert other is not None
    # There one token takes 64 KiB.
    found = replace(found, measured={other.key: Measured(available=GIB)})
    (reason,) = refused(what, found)
    assert reason.endswith("give --max-model-len 10992 or less, or take TP 2 and --pp 2")


def test_what_fits_is_started() -> None:
    decided = decide(asked(2, max_model_len=8192), fleet(24))
    assert decided.conditions is not None
    assert (decided.conditions.card, decided.conditions.tensor_parallel) == ("A", 2)


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-model-len", "4096"),
        ("--max-model-len=4k",),
        ("--max_model_len=4096",),
        ("--cpu-offload-gb", "30"),
    ],
)
def test_the_users_own_flags_are_counted_with(flags: tuple[str, ...]) -> None:
    vllm = replace(VLLM, flags=VLLM.flags | {"--cpu-offload-gb"})
    assert decide(asked(1, arguments=flags), fleet(24, vllm=vllm)).service.world == 1


def test_the_last_value_of_a_flag_wins() -> None:
    words = ("--max-num-seqs=4", "--x", "--max_num_seqs", "8")
    assert (value_of(words, "--max-num-seqs"), value_of(words, "--y")) == ("8", "")
    assert value_of(("--max-num-seqs",), "--max-num-seqs") == ""


@pytest.mark.parametrize("found", [fleet(None), fleet(16, None)])
def test_what_nobody_can_know_refuses_nothing(found: FoundServices) -> None:
    assert decide(asked(1), found).conditions is None


def test_on_processors_the_engines_own_setting_decides() -> None:
    found = fleet(1)
    members = tuple(
        replace(one, accelerator=replace(one.accelerator, name="cpu")) for one in found.members
    )
    assert cards_of(members) is None
    assert decide(asked(1), replace(found, members=members)).conditions is None


def test_weights_that_vllm_shrinks_while_it_loads_them_take_less() -> None:
    assert refused(asked(1, max_model_len=2048), fleet(16))
    assert decide(asked(1, max_model_len=2048, quantization="fp8"), fleet(16)).service.world == 1


def test_what_is_only_tight_is_tried_and_said() -> None:
    assert decide(asked(1, max_model_len=8192), fleet(23)).notes == (
        "m is tight on its cards: a context of 8192 tokens has room only if nothing else grows;"
        " 3600 is safe",
    )
    assert decide(asked(2, max_model_len=2048), fleet(24)).notes == ()


def test_what_was_measured_counts_more_than_what_was_computed() -> None:
    found = fleet(24)
    first = decide(asked(1, max_model_len=4096), found)
    assert first.conditions is not None
    # One token takes 128 KiB: 0.25 GiB hold 2048 of them.
    little = {first.conditions.key: Measured(available=GIB // 4)}
    (reason,) = refused(asked(1, max_model_len=4096), replace(found, measured=little))
    assert reason.endswith(
        "no room for one request of 4096 tokens: give --max-model-len 2048 or less, or take TP 2"
    )
    much = {first.conditions.key: Measured(available=17 * GIB)}
    assert decide(asked(1), replace(found, measured=much)).service.world == 1


def test_an_engines_own_word_is_kept_and_read_again(tmp_path: Path) -> None:
    log = tmp_path / "m.log"
    log.write_text(
        "INFO Available KV cache memory: 99.00 GiB\n"
        "(Worker pid=1) INFO Available KV cache memory: 4.25 GiB\n"
        "(Worker pid=2) INFO Available KV cache memory: 4.00 GiB\n"
        "INFO GPU KV cache size: 161,280 tokens\n"
    )
    conditions = Conditions(
        image="i", card="c", model="m", weights=1, tensor_parallel=2, pipeline_parallel=1,
        utilisation=0.9,
    )  # fmt: skip
    shell, folder = LocalShell("here"), str(tmp_path / "kept")
    fact = measured(folder)
    assert fact.parse(shell.run(fact.command)) == {}
    assert shell.run(keep(str(log), folder, conditions)).ok
    known = fact.parse(shell.run(fact.command))
    assert known == {conditions.key: Measured(available=4 * GIB, tokens=161_280)}
    (file,) = (tmp_path / "kept").iterdir()
    file.write_text("{}\nAvailable KV cache memory: -1 GiB\n")
    (tmp_path / "kept" / "other.txt").write_text("{half")
    assert fact.parse(shell.run(fact.command)) == {}


def test_a_log_without_it_changes_nothing(tmp_path: Path) -> None:
    conditions = Conditions(
        image="i", card="c", model="m", weights=1, tensor_parallel=1, pipeline_parallel=1,
        utilisation=0.9,
    )  # fmt: skip
    shell = LocalShell("here")
    assert shell.run(keep(str(tmp_path / "none.log"), str(tmp_path / "kept"), conditions)).ok
    assert not (tmp_path / "kept").exists()


def test_the_head_keeps_what_its_own_engines_said() -> None:
    found = fleet(24)
    decided = decide(asked(2, max_model_len=4096), found)
    ground = Ground(draft=Draft(), wanted=wanted(), supervisor=InDocker(), head=found.head)
    steps.remember(ground, decided.service, decided.conditions, ())
    steps.remember(ground, decided.service, None, ())
    elsewhere = replace(decided.service, name="n", placement={"gpu-02": (0,)})
    steps.remember(ground, elsewhere, decided.conditions, ())
    assert lines(ground.draft.finished()) == (
        "gpu-01: keep cache size of m (the next plan counts with what was measured)"
    )
    said = str(ground.draft.steps[0].command)
    assert "/var/lib/vllmdeploy/vllm/logs/vllm-ray-head/m.log" in said


def model_folder(folder: Path, names: tuple[str, ...]) -> None:
    for name in names:
        header = {"__metadata__": {}, f"{name}.weight": {"dtype": "BF16", "shape": [4, 2]}}
        header[f"{name}.weight"]["data_offsets"] = [0, 16]
        text = json.dumps(header).encode()
        (folder / f"{name}.safetensors").write_bytes(
            len(text).to_bytes(8, "little") + text + bytes(16)
        )


def told(folder: Path) -> Weights | None:
    fact = weights(Command(weights_argv(str(folder))))
    return fact.parse(LocalShell("here").run(fact.command))


def test_a_hosts_own_python_tells_what_we_would_read(tmp_path: Path) -> None:
    assert told(tmp_path) is None
    model_folder(tmp_path, ("a", "b"))
    assert told(tmp_path) == of_folder(tmp_path)
    (tmp_path / "c.safetensors").write_bytes(b"\xff" * 100)
    broken = told(tmp_path)
    assert broken is not None
    assert broken.tensors == ()
    assert broken.total_bytes > 100


@pytest.mark.parametrize("answer", ["", "@@weights@@", "@@weights@@AAAA", "@@weights@@e30="])
def test_an_answer_that_is_none_is_not_known(answer: str) -> None:
    fact = weights(Command(("printf", "%s", answer)))
    assert fact.parse(LocalShell("here").run(fact.command)) is None
