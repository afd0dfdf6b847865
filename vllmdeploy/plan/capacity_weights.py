"""What of a model's weights one rank holds, under tensor and pipeline parallelism."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vllmdeploy.plan.capacity_model import ModelShape
from vllmdeploy.tools.safetensors import Tensor, Weights

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d{1,5})\.")
_OUTSIDE = re.compile(r"(?:^|\.)(?:visual|vision\w*|audio\w*|vit|multi_modal\w*|mlp1)\.")
# Every rank has its own copy of these: norms, routers, and the down-projections of a latent.
_COPIED = re.compile(
    r"norm|\.gate\.(?:weight|e_score)|router|q_a_proj|kv_a_proj|k_pos|indexer\.|inv_freq"
)
_KEYS_AND_VALUES = re.compile(r"\.(?:k_proj|v_proj)\.")
_EMBEDDING = re.compile(r"(?:embed_tokens|word_embeddings|wte|\bembedding)\b.*weight$")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|output_layer)\.weight$")
# Heads that predict further tokens are loaded only for speculative decoding.
_NOT_LOADED = re.compile(r"^(?:mtp|model\.mtp)\.|\.mtp_block\.")
# vLLM loads a float32 checkpoint in half precision; what it keeps in float32 is tiny.
_FLOAT32 = "F32"
_UNNAMED_EXTRA = 1.03


def rank_weights(
    weights: Weights, shape: ModelShape, *, tensor_parallel: int, pipeline_parallel: int
) -> int:
    """Bytes on the rank that holds most."""
    if not weights.tensors:
        even = weights.total_bytes / (tensor_parallel * pipeline_parallel)
        copied = _UNNAMED_EXTRA if tensor_parallel * pipeline_parallel > 1 else 1.0
        return int(even * copied)
    stages = [0] * pipeline_parallel
    layers = len(shape.layers.kinds)
    per_stage = -(-layers // pipeline_parallel)
    for tensor in _loaded(weights.tensors, shape, layers):
        share = _share(tensor, shape, tensor_parallel)
        for stage in _stages(tensor.name, shape, per_stage, pipeline_parallel):
            stages[stage] += share
    return max(stages)


def _loaded(tensors: Iterable[Tensor], shape: ModelShape, layers: int) -> Iterable[Tensor]:
    for tensor in tensors:
        layer = _LAYER.search(tensor.name)
        beyond = layer and int(layer[1]) >= layers and not _OUTSIDE.search(tensor.name)
        tied_head = shape.tied and _HEAD.search(tensor.name)
        if not (beyond or tied_head or _NOT_LOADED.search(tensor.name)):
            yield tensor


def _share(tensor: Tensor, shape: ModelShape, tensor_parallel: int) -> int:
    size = tensor.size // 2 if tensor.dtype == _FLOAT32 else tensor.size
    if _COPIED.search(tensor.name) or _OUTSIDE.search(tensor.name):
        return size
    ways = tensor_parallel
    if _KEYS_AND_VALUES.search(tensor.name):
        ways = min(tensor_parallel, shape.kv_heads)
    return -(-size // ways)


def _stages(name: str, shape: ModelShape, per_stage: int, stages: int) -> Iterable[int]:
    """The first stage embeds, the last one predicts; a tied embedding is on both."""
    last = stages - 1
    if _OUTSIDE.search(name):
        return (0,)
    if layer := _LAYER.search(name):
        return (min(int(layer[1]) // per_stage, last),)
    if _EMBEDDING.search(name):
        return {0, last} if shape.tied else (0,)
    return (last,)
