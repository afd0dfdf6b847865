"""Rerank models: which one a size means, what vLLM has to be told about it, how many go where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

from vllmdeploy.config.profiles import MODEL_SIZES, ModelSize
from vllmdeploy.config.values import shown, suggestion
from vllmdeploy.core.reading import json_object, whole
from vllmdeploy.errors import UsageError
from vllmdeploy.tools.vllm import Vllm

_FAMILY = "Qwen3-Reranker"
RENDERERS = "--renderer-num-workers"
_GIB_OF_MIB = 1024

# The words are those that the model was trained with: it scores badly with any others.
_JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct"
    ' provided. Note that the answer can only be "yes" or "no".'
)
_TASK = "Given a web search query, retrieve relevant passages that answer the query"

# vLLM hands the pair over as messages with the roles `query` and `document`, and what a caller
# asks for as `instruction`.
_TEMPLATE = (
    "{%- set say = namespace(task=instruction | default(none), query='', document='') -%}"
    "{%- for message in messages -%}"
    "{%- if message.role == 'query' -%}{%- set say.query = message.content -%}"
    "{%- elif message.role == 'document' -%}{%- set say.document = message.content -%}"
    "{%- elif message.role == 'system' -%}"
    "{%- set say.task = say.task or message.content -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{{- '<|im_start|>system\n" + _JUDGE + "<|im_end|>\n<|im_start|>user\n' -}}"
    "{{- '<Instruct>: ' + (say.task or '" + _TASK + "') -}}"
    "{{- '\n<Query>: ' + say.query + '\n<Document>: ' + say.document -}}"
    "{{- '<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n' -}}"
)
TEMPLATE = _TEMPLATE.replace("\n", "\\n")
"""On one line, as vLLM takes a template that is no file: it reads `\\n` as a line's end."""

_QWEN3: Mapping[str, object] = {
    "architectures": ["Qwen3ForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "is_original_qwen3_reranker": True,
}
_GEMMA: Mapping[str, object] = {
    "architectures": ["GemmaForSequenceClassification"],
    "classifier_from_token": ["Yes"],
    "method": "no_post_processing",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankWanted:
    """`max_workers`: threads that an engine renders requests with, where it has that."""

    model: str
    size: ModelSize | None = None
    workers: int = 1
    max_workers: int | None = None
    max_num_seqs: int | None = None
    utilisation: float | None = None


def size_named(name: str) -> ModelSize:
    for size in MODEL_SIZES:
        if size.name.lower() == name.lower():
            return size
    names = [size.name for size in MODEL_SIZES]
    near = suggestion(name.upper(), names)
    raise UsageError(f"{shown(name)} is not a size: {', '.join(names)}{near}")


def model_of(size: ModelSize) -> str:
    return f"{_FAMILY}-{size.name}"


def repository_of(size: ModelSize) -> str:
    return f"Qwen/{model_of(size)}"


def size_of(model: str) -> ModelSize | None:
    """Of one of ours by its name, None for any other."""
    return next((size for size in MODEL_SIZES if model_of(size) == model), None)


def expected_config(size: ModelSize | None) -> str:
    """What a checkpoint says of itself, as far as its size's name tells before anybody saw it."""
    return _json({"architectures": ["Qwen3ForCausalLM"]}) if size else ""


def engine_arguments(wanted: RerankWanted, config: str, vllm: Vllm) -> tuple[str, ...]:
    """Beside `--runner pooling`, which the task says: what this checkpoint needs to be a
    classifier, its template, and its rendering threads."""
    threads = wanted.max_workers
    rendering = (RENDERERS, str(threads)) if threads and vllm.knows(RENDERERS) else ()
    return (*_checkpoint(wanted.model, config), *rendering)


def rendering_threads(arguments: Sequence[str]) -> int | None:
    """What an engine was told of them."""
    pairs = dict(pairwise(arguments))
    return whole(pairs[RENDERERS]) if RENDERERS in pairs else None


def _checkpoint(model: str, config: str) -> tuple[str, ...]:
    """By what the checkpoint is: converted ones and true cross-encoders need nothing."""
    kinds = _architectures(config)
    ranks = "rerank" in model.lower()
    if ranks and "Qwen3ForCausalLM" in kinds:
        return ("--hf-overrides", _json(_QWEN3), "--chat-template", TEMPLATE)
    if ranks and "Qwen3ForSequenceClassification" in kinds:
        return ("--chat-template", TEMPLATE)
    if ranks and "GemmaForCausalLM" in kinds:
        return ("--hf-overrides", _json(_GEMMA))
    return ()


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _architectures(config: str) -> tuple[str, ...]:
    named: object = (json_object(config) or {}).get("architectures")
    return tuple(map(str, cast("Sequence[object]", named))) if isinstance(named, list) else ()


def notes(wanted: RerankWanted, vllm: Vllm, card_mib: int | None) -> Iterable[str]:
    """What is outside the table of sizes, and what the image cannot do."""
    if wanted.max_workers and not vllm.knows(RENDERERS):
        yield (
            f"MAX_WORKERS={wanted.max_workers}: vLLM {vllm.version} has no {RENDERERS};"
            " it is the size of a client's pool only"
        )
    if wanted.size is None:
        return
    size, name = wanted.size, wanted.size.name
    fewest, most = size.workers
    if wanted.workers > most:
        advised = f"{fewest}-{most}" if fewest != most else str(most)
        yield f"{wanted.workers} engines of {name} share a card; {advised} are usual"
    if wanted.utilisation is not None and wanted.workers > 1:
        low, high = size.gpu_memory_utilization
        if not low <= wanted.utilisation <= high:
            total = f"{wanted.utilisation:g}"
            yield f"{total} of a card for engines of {name}; {low:g}-{high:g} is usual"
    if wanted.max_num_seqs and wanted.max_num_seqs > size.max_num_seqs[1]:
        yield f"{wanted.max_num_seqs} sequences on {name}; at most {size.max_num_seqs[1]} are usual"
    yield from _memory(wanted, size, card_mib)


def _memory(wanted: RerankWanted, size: ModelSize, card_mib: int | None) -> Iterable[str]:
    if card_mib is None or wanted.utilisation is None:
        return
    each = card_mib * wanted.utilisation / wanted.workers / _GIB_OF_MIB
    least, enough = size.memory_gib
    if each < enough:
        yield f"{each:.1f} GiB for each engine of {size.name}; {least}-{enough} GiB are usual"
