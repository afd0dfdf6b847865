"""Every test starts without the settings, agents and keys of whoever runs it."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How long one example takes says something of the machine's load only.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

_SEED_NAMES = (
    *("WORKERS", "MAX_WORKERS", "MAX_NUM_SEQS", "MAX_NUM_BATCHED_TOKENS", "MAX_MODEL_LEN"),
    *("GPU_MEMORY_UTILIZATION", "TENSOR_PARALLEL_SIZE", "MODEL_PATH", "QUANTIZATION"),
    *("CUDA_MPS_ENABLE", "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY", "VLLM_USE_MPS"),
    *("USE_MULTI_VLLM", "VLLM_PORTS", "VLLM_HOST", "INPUT_JSONL", "OUTPUT_DIR", "FONT_PATH"),
    *("VLLM_DISABLE_CUSTOM_ALL_REDUCE", "API_PORT", "HF_TOKEN", "HF_ENDPOINT", "RAY_ADDRESS"),
    *("SSH_AUTH_SOCK", "SSH_ASKPASS", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"),
)


def pytest_configure() -> None:
    """A shell starts what it puts into the background deaf to Ctrl-C, children included."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in tuple(os.environ):
        if name.startswith("VLLMDEPLOY_") or name in _SEED_NAMES:
            monkeypatch.delenv(name)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other accounts may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="vllmdeploy-test-") as folder:
        path = Path(folder)
        path.chmod(0o755)
        yield path
