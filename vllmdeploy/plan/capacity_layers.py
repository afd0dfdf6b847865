"""Which of a model's layers keep every token, which a window, and which a fixed state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

FULL, WINDOW, STATE, NONE = "full", "window", "state", "none"
_NAMES = {
    FULL: ("full_attention", "attention", "global_attention", "hybrid"),
    WINDOW: ("sliding_attention", "chunked_attention", "sliding_window"),
    STATE: ("linear_attention", "mamba", "mamba2", "conv", "recurrent"),
    NONE: ("moe", "mlp"),
}
_BY_NAME = {name: kind for kind, names in _NAMES.items() for name in names}
_BY_LETTER = {"*": FULL, "M": STATE, "-": NONE, "E": NONE}
_WINDOW_EVERYWHERE = ("mistral", "phi3", "starcoder2")
_STATE_KEYS = ("mamba_d_state", "ssm_state_size", "state_size", "mamba_d_conv", "ssm_cfg")
_STATE_NOTE = (
    "layers with a fixed state (linear attention, Mamba) share the cache in a way that depends on "
    "the context length: an estimate, with half of the memory held back"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """The kind of every layer, in order; `window` in tokens where there is one."""

    kinds: tuple[str, ...]
    window: int = 0

    def fullest(self, stages: int) -> Layers:
        """The pipeline stage with the most layers that keep tokens."""
        size = -(-len(self.kinds) // stages)
        starts = range(0, len(self.kinds), size)
        parts = (self.kinds[start : start + size] for start in starts)
        kinds = max(parts, key=lambda part: (part.count(FULL), part.count(WINDOW)))
        return Layers(kinds=kinds, window=self.window)

    def count(self, kind: str) -> int:
        return self.kinds.count(kind)


def layers_of(
    config: Mapping[str, Any], count: int, *, kind: str
) -> tuple[Layers, tuple[str, ...]]:
    """The layers, and what is not known about them."""
    window = config.get("sliding_window") or config.get("attention_chunk_size") or 0
    if type(window) is not int or window < 1:
        window = 0
    kinds, note = _kinds(config, count, kind, window)
    notes = [note] if note else []
    if WINDOW in kinds and not window:
        kinds = tuple(FULL if one == WINDOW else one for one in kinds)
        notes.append("its window's size is not stated: counted as full attention")
    if STATE in kinds:
        notes.append(_STATE_NOTE)
    return Layers(kinds=kinds, window=window), tuple(notes)


def _kinds(
    config: Mapping[str, Any], count: int, kind: str, window: int
) -> tuple[tuple[str, ...], str]:
    listed = _listed(config, count)
    if listed is not None:
        return listed
    if interval := _whole(config.get("full_attention_interval")):
        return _each(count, lambda layer: FULL if (layer + 1) % interval == 0 else STATE), ""
    if period := _whole(config.get("attn_layer_period")):
        offset = _whole(config.get("attn_layer_offset"))
        return _each(count, lambda layer: FULL if layer % period == offset else STATE), ""
    if any(key in config for key in _STATE_KEYS):
        return (FULL,) * count, "which layers keep a fixed state is not known: full is taken"
    return _windows(config, count, kind, window)


def _listed(config: Mapping[str, Any], count: int) -> tuple[tuple[str, ...], str] | None:
    """Configs that name the kind of each layer, in one of four spellings."""
    names = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(names, list):
        read = tuple(_BY_NAME.get(str(name), "") for name in cast("list[object]", names))
        return _checked(read, count)
    pattern = config.get("hybrid_override_pattern")
    if isinstance(pattern, str):
        return _checked(tuple(_BY_LETTER.get(letter, "") for letter in pattern), count)
    linear = config.get("linear_attn_config")
    numbered = cast("dict[str, Any]", linear).get("full_attn_layers") if linear else None
    if isinstance(numbered, list):
        full = cast("list[object]", numbered)
        return _each(count, lambda layer: FULL if layer + 1 in full else STATE), ""
    return None


def _checked(kinds: Sequence[str], count: int) -> tuple[tuple[str, ...], str]:
    if len(kinds) != count:
        return (FULL,) * count, "its list of layers has another length: full attention is taken"
    if "" in kinds:
        taken = tuple(one or FULL for one in kinds)
        return taken, "it has layers of a kind that is not known: full attention is taken"
    return tuple(kinds), ""


def _windows(
    config: Mapping[str, Any], count: int, kind: str, window: int
) -> tuple[tuple[str, ...], str]:
    if not window or config.get("use_sliding_window") is False:
        return (FULL,) * count, ""
    pattern = _whole(config.get("sliding_window_pattern"))
    if kind == "gemma2":
        pattern = 2
    if pattern:
        return _each(count, lambda layer: WINDOW if (layer + 1) % pattern else FULL), ""
    if config.get("use_sliding_window") is True:
        first = _whole(config.get("max_window_layers"))
        return _each(count, lambda layer: WINDOW if layer >= first else FULL), ""
    if kind in _WINDOW_EVERYWHERE:
        return (WINDOW,) * count, ""
    return (FULL,) * count, f"which layers of {kind or 'this model'} have a window is not known"


def _each(count: int, kind_of: Callable[[int], str]) -> tuple[str, ...]:
    return tuple(kind_of(layer) for layer in range(count))


def _whole(value: object) -> int:
    return value if type(value) is int and value > 0 else 0
