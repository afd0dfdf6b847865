"""vLLM's KV cache as arithmetic: bytes a token, blocks a request, tokens in a given memory."""

from __future__ import annotations

from dataclasses import dataclass

from vllmdeploy.plan.capacity_layers import FULL, STATE, WINDOW, Layers
from vllmdeploy.plan.capacity_model import ModelShape

BLOCK_TOKENS = 16
_HALF_BYTES = 2
# With an indexer, vLLM packs the latent in fp8 with scales and a bf16 rope part.
_PACKED_LATENT_BYTES = 656
_LIKE_SIZED = 1.25
_HELD_BACK_WITH_STATE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cache:
    """What one rank keeps. A block holds `block_layers` layers of 16 tokens; a request needs
    blocks of `full_groups` groups for all its tokens, and of `window_groups` for a window."""

    layer_token_bytes: int
    block_layers: int
    full_groups: int
    window_groups: int
    window: int = 0
    in_flight_tokens: int = 0
    held_back: int = 1

    @property
    def token_bytes(self) -> int:
        """What one more token of a long request costs one rank."""
        return self.layer_token_bytes * self.block_layers * self.full_groups

    @property
    def block_bytes(self) -> int:
        return self.layer_token_bytes * self.block_layers * BLOCK_TOKENS

    def blocks(self, available_bytes: int) -> int:
        return max(0, available_bytes) // (self.block_bytes * self.held_back)

    def request_blocks(self, length: int) -> int:
        full = self.full_groups * _blocks_for(length)
        if not self.window_groups:
            return full
        kept = min(self.window - 1 + self.in_flight_tokens, length)
        return full + self.window_groups * (_blocks_for(kept) + 1)

    def concurrency(self, available_bytes: int, length: int) -> float:
        """Requests of this length at once: what vLLM prints as maximum concurrency."""
        return self.blocks(available_bytes) / self.request_blocks(length)

    def tokens(self, available_bytes: int, length: int) -> int:
        """What vLLM prints as the size of its KV cache."""
        return int(self.concurrency(available_bytes, length) * length)

    def longest(self, available_bytes: int, most: int) -> int:
        """The longest request that has room, up to `most`; 0 where not even a token has."""
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.concurrency(available_bytes, middle) >= 1:
                low = middle
            else:
                high = middle - 1
        return low


def cache_of(
    shape: ModelShape,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    value_bytes: int = _HALF_BYTES,
    in_flight_tokens: int = 2048,
) -> Cache:
    """The cache of the rank that has the most to keep: it decides for all."""
    layers = shape.layers.fullest(pipeline_parallel)
    size, full_groups, window_groups = _groups(layers)
    return Cache(
        layer_token_bytes=_layer_token_bytes(shape, tensor_parallel, value_bytes),
        block_layers=size,
        full_groups=full_groups,
        window_groups=window_groups,
        window=layers.window,
        in_flight_tokens=in_flight_tokens,
        held_back=_HELD_BACK_WITH_STATE if STATE in shape.layers.kinds else 1,
    )


def _layer_token_bytes(shape: ModelShape, tensor_parallel: int, value_bytes: int) -> int:
    if shape.latent:
        # The latent is one for all heads, so every rank keeps the whole of it.
        packed = shape.indexer_bytes and value_bytes < _HALF_BYTES
        latent = _PACKED_LATENT_BYTES if packed else shape.latent * value_bytes
        return latent + shape.indexer_bytes
    heads = max(1, shape.kv_heads // tensor_parallel)
    return heads * (shape.key_dim + shape.value_dim) * value_bytes


def _groups(layers: Layers) -> tuple[int, int, int]:
    """vLLM cuts layers into groups of one kind and one size, so that all blocks are alike."""
    full, window = layers.count(FULL), layers.count(WINDOW)
    if not full or not window:
        return max(full + window, 1), int(full > 0 or not window), int(window > 0)
    less, more = sorted((full, window))
    size = more if more < less * _LIKE_SIZED else less
    return size, -(-full // size), -(-window // size)


def _blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
