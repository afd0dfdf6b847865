"""Operations for multi-node Ray clusters that serve language models with vLLM."""

from __future__ import annotations

__version__ = "0.1.0"
