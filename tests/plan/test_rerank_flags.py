"""What vLLM is told about each kind of rerank model."""

from __future__ import annotations

import json

import pytest
from jinja2 import Environment

from vllmdeploy.errors import UsageError
from vllmdeploy.plan import rerank
from vllmdeploy.plan.rerank import RerankWanted
from vllmdeploy.tools.vllm import Vllm

NEW = Vllm(version="0.33.0", flags=frozenset(("--runner", "--renderer-num-workers")))
OLD = Vllm(version="0.9.2", flags=frozenset(("--task",)))


def config(architecture: str) -> str:
    return json.dumps({"architectures": [architecture]})


def test_an_original_qwen3_reranker_becomes_a_classifier_with_its_template() -> None:
    wanted = RerankWanted(model="Qwen3-Reranker-4B", max_workers=8)
    assert rerank.engine_arguments(wanted, config("Qwen3ForCausalLM"), NEW) == (
        "--hf-overrides",
        '{"architectures":["Qwen3ForSequenceClassification"],'
        '"classifier_from_token":["no","yes"],"is_original_qwen3_reranker":true}',
        "--chat-template",
        rerank.TEMPLATE,
        "--renderer-num-workers",
        "8",
    )


@pytest.mark.parametrize(
    ("model", "architecture", "flags"),
    [
        ("Qwen3-Reranker-0.6B-seq-cls", "Qwen3ForSequenceClassification", ["--chat-template"]),
        ("bge-reranker-v2-gemma", "GemmaForCausalLM", ["--hf-overrides"]),
        ("bge-reranker-v2-m3", "XLMRobertaForSequenceClassification", []),
        ("all-MiniLM-L6-v2", "BertModel", []),
        ("Qwen3-4B", "Qwen3ForCausalLM", []),
    ],
)
def test_other_checkpoints_get_what_they_need(
    model: str, architecture: str, flags: list[str]
) -> None:
    given = rerank.engine_arguments(RerankWanted(model=model), config(architecture), NEW)
    assert [one for one in given if one.startswith("--")] == flags


@pytest.mark.parametrize("text", ["", "[]", '{"architectures": 3}', '{"architectures": [{}]}'])
def test_a_config_that_says_nothing_usable_adds_no_flag(text: str) -> None:
    assert rerank.engine_arguments(RerankWanted(model="x-reranker"), text, NEW) == ()


def rendered(**given: object) -> str:
    """As vLLM reads it: escapes become what they stand for."""
    text = rerank.TEMPLATE.encode().decode("unicode_escape")
    messages = [{"role": "query", "content": "Why?"}, {"role": "document", "content": "So."}]
    return Environment(autoescape=False).from_string(text).render(messages=messages, **given)


def test_the_template_is_one_line_and_renders_the_prompt_that_the_model_knows() -> None:
    assert "\n" not in rerank.TEMPLATE
    assert rendered() == (
        "<|im_start|>system\n"
        "Judge whether the Document meets the requirements based on the Query and the Instruct"
        ' provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
        "<|im_start|>user\n"
        "<Instruct>: Given a web search query, retrieve relevant passages that answer the query\n"
        "<Query>: Why?\n"
        "<Document>: So.<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


def test_an_instruction_takes_the_place_of_the_usual_one() -> None:
    assert "<Instruct>: Find bananas\n" in rendered(instruction="Find bananas")
    assert "<Instruct>: Given a web" in rendered(instruction=None)


def test_sizes_name_models_and_misspelt_ones_the_right_sizes() -> None:
    assert rerank.repository_of(rerank.size_named("0.6b")) == "Qwen/Qwen3-Reranker-0.6B"
    with pytest.raises(UsageError) as error:
        rerank.size_named("6B")
    assert str(error.value) == "'6B' is not a size: 0.6B, 4B, 8B; did you mean 0.6B?"


def test_what_is_outside_the_table_is_said() -> None:
    wanted = RerankWanted(
        model="Qwen3-Reranker-8B",
        size=rerank.size_named("8B"),
        workers=4,
        max_workers=16,
        max_num_seqs=4096,
        utilisation=0.95,
    )
    assert list(rerank.notes(wanted, OLD, 49_152)) == [
        "MAX_WORKERS=16: vLLM 0.9.2 has no --renderer-num-workers;"
        " it is the size of a client's pool only",
        "4 engines of 8B share a card; 1 are usual",
        "0.95 of a card for engines of 8B; 0.5-0.6 is usual",
        "4096 sequences on 8B; at most 2048 are usual",
        "11.4 GiB for each engine of 8B; 16-24 GiB are usual",
    ]
    usual = RerankWanted(model="m", size=rerank.size_named("0.6B"), workers=2, utilisation=0.7)
    assert list(rerank.notes(usual, NEW, 24_564)) == []
