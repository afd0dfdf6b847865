"""JSONL in, JSONL out, every row exactly once."""
