"""A model's shape from its config.json: what decides the memory that its requests need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from vllmdeploy.errors import UsageError
from vllmdeploy.plan.capacity_layers import Layers, layers_of

_MOST = 10_000_000
# What vLLM serves with the latent cache; any other model with these keys gets full keys and values.
_LATENT = (
    *("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_mtp", "kimi_k2", "kimi_k25"),
    *("longcat_flash", "kimi_linear", "pangu_ultra_moe", "glm_moe_dsa", "glm4_moe_lite"),
)
_NO_CACHE = ("bert", "roberta", "xlm-roberta", "nomic_bert", "modernbert", "new", "gte")
_STRETCHING = ("yarn", "linear", "dynamic")
# One byte of key and a four-byte scale for each group of 128.
_INDEXER_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """`exact` says that the cache's size follows from the shape; else `notes` say why not."""

    kind: str
    layers: Layers
    hidden: int
    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    vocabulary: int
    intermediate: int
    longest: int
    latent: int = 0
    indexer_bytes: int = 0
    cached: bool = True
    tied: bool = False
    multimodal: bool = False
    exact: bool = True
    notes: tuple[str, ...] = ()


def parse_config(text: str, *, where: str = "config.json") -> ModelShape:
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: it holds no readable JSON") from error
    if not isinstance(whole, dict):
        raise UsageError(f"{where}: its JSON is not an object")
    outer = cast("dict[str, Any]", whole)
    nested = outer.get("text_config") or outer.get("llm_config") or outer.get("thinker_config")
    inner = cast("dict[str, Any]", nested) if isinstance(nested, dict) else outer
    return _shape(_Config(inner, where), outer)


@dataclass(frozen=True, slots=True)
class _Config:
    values: Mapping[str, Any]
    where: str

    def count(self, *names: str, default: int | None = None, least: int = 1) -> int:
        """The first of these keys that is there; what is there must be a sane whole number."""
        for name in names:
            value = self.values.get(name)
            if value is None:
                continue
            if type(value) is not int or not least <= value <= _MOST:
                raise UsageError(f"{self.where}: {name} is {value!r}, not a count")
            return value
        if default is None:
            raise UsageError(
                f"{self.where}: there is no {names[0]}",
                hint="capacity needs the config.json of a transformer language model",
            )
        return default

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None


def _shape(config: _Config, outer: Mapping[str, Any]) -> ModelShape:
    kind = str(config.values.get("model_type", ""))
    heads = config.count("num_attention_heads", "n_head", "n_heads")
    hidden = config.count("hidden_size", "n_embd", "d_model")
    count = config.count("num_hidden_layers", "num_layers", "n_layer", "n_layers")
    if count > 2000 or heads > 100_000:
        raise UsageError(f"{config.where}: {count} layers of {heads} heads cannot be")
    layers, notes = layers_of(config.values, count, kind=kind)
    head_dim = config.count("head_dim", "kv_channels", default=max(1, hidden // heads))
    latent, indexer, key_dim, value_dim, note = _dimensions(config, kind, head_dim)
    notes = (*notes, *note)
    if config.has("block_configs") or config.has("num_attention_heads_per_layer"):
        notes = (*notes, "its layers differ in heads, and are counted as the largest")
    if config.has("compress_ratios") or kind.startswith("deepseek_v4"):
        notes = (*notes, "its cache is compressed by layer, which is not modelled here")
    return ModelShape(
        kind=kind,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads if latent == 0 and note else _kv_heads(config, heads),
        key_dim=key_dim,
        value_dim=value_dim,
        vocabulary=config.count("vocab_size", "padded_vocab_size", default=32000),
        intermediate=_intermediate(config, hidden),
        longest=_longest(config),
        latent=latent,
        indexer_bytes=indexer,
        cached=kind not in _NO_CACHE,
        tied=bool(config.values.get("tie_word_embeddings", False)),
        multimodal=any(key in outer for key in ("vision_config", "audio_config", "visual")),
        exact=not notes,
        notes=notes,
    )


def _dimensions(
    config: _Config, kind: str, head_dim: int
) -> tuple[int, int, int, int, tuple[str, ...]]:
    """Latent size, indexer bytes, key and value size of a head, and what is not known."""
    if not config.has("kv_lora_rank"):
        value_dim = config.count("v_head_dim", default=head_dim)
        return 0, 0, head_dim, value_dim, ()
    rope = config.count("qk_rope_head_dim", least=0)
    latent = config.count("kv_lora_rank") + rope
    indexer = config.count("index_head_dim", default=0, least=0)
    if kind in _LATENT:
        return latent, indexer + _INDEXER_SCALE_BYTES if indexer else 0, 0, 0, ()
    key_dim = config.count("qk_nope_head_dim") + rope
    note = (
        f"whether vLLM keeps {kind or 'this model'} in a latent cache is not known: full is taken"
    )
    return 0, 0, key_dim, key_dim, (note,)


def _kv_heads(config: _Config, heads: int) -> int:
    if config.has("multi_query_group_num"):
        return config.count("multi_query_group_num")
    if config.values.get("multi_query") is True and not config.has("num_kv_heads"):
        return 1
    return config.count("num_key_value_heads", "num_kv_heads", "n_head_kv", default=heads)


def _longest(config: _Config) -> int:
    """As vLLM derives it: some kinds of rotary scaling stretch the stated context."""
    stated = config.count(
        *("max_position_embeddings", "seq_length", "max_sequence_length", "n_positions"),
        default=2048,
    )
    value = config.values.get("rope_scaling") or config.values.get("rope_parameters")
    scaling = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    factor = scaling.get("factor")
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind not in _STRETCHING or not isinstance(factor, int | float) or not 1 <= factor <= 1000:
        return stated
    original = scaling.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int) and 1 <= original <= stated:
        stated = original
    return int(stated * factor)


def _intermediate(config: _Config, hidden: int) -> int:
    """The widest thing that a token passes through: the MLP, or all its experts together."""
    dense = config.count("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden)
    each = config.count("moe_intermediate_size", default=0, least=0)
    chosen = config.count("num_experts_per_tok", "moe_topk", default=0, least=0)
    shared = config.count("n_shared_experts", default=0, least=0)
    return max(dense, each * (chosen + shared))
