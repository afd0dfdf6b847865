"""Rendezvous hashing: who scores highest for a key, the same on every machine."""

from __future__ import annotations

_MASK = 0xFFFFFFFF


def score(key: int, seed: int) -> int:
    """The 32-bit finaliser of MurmurHash3 over key and seed.

    With it, unlike with a ring of points, removing one upstream moves its own keys and no others,
    no table is built when upstreams come and go, and the order of fallbacks comes for free.
    """
    x = (key * 0x9E3779B1 ^ seed) & _MASK
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)
