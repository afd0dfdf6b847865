"""The line of an engine's log that says why, out of those that only say that."""

from __future__ import annotations

import pytest

from vllmdeploy.core.causes import FirstOfBurst, named

# As vLLM 0.32 wrote it on a machine without libnuma, frames left out.
LOG = """\
(VllmWorker-0 pid=47) WARNING 11-21 19:29:23 [cpu.py:644] Failed to import from vllm._C: \
ImportError('libnuma.so.1: cannot open shared object file: No such file or directory')
(VllmWorker-0 pid=47) ERROR 11-21 19:29:24 [multiproc_executor.py:953] WorkerProc failed to start.
(VllmWorker-0 pid=47) ERROR 11-21 19:29:24 [multiproc_executor.py:953]     raise AttributeError(
(VllmWorker-0 pid=47) ERROR 11-21 19:29:24 [multiproc_executor.py:953] AttributeError: \
'_OpNamespace' '_C' object has no attribute 'init_cpu_memory_env'
(EngineCore pid=34) ERROR 11-21 19:29:27 [core.py:1510] Exception: WorkerProc initialization failed
Exception: WorkerProc initialization failed due to an exception in a background process.
RuntimeError: Engine core initialization failed. See root cause above.
""".splitlines()


def test_the_first_error_of_an_end_is_its_cause() -> None:
    causes = FirstOfBurst()
    for number, line in enumerate(LOG):
        causes.feed(line, 100.0 + number)
    assert causes.at_end(110.0) == LOG[3]
    assert named(LOG[3]).startswith("AttributeError: '_OpNamespace'")


# A rank on another host, by Ray; frames left out.
OF_RAY = """\
(EngineCore pid=9) ERROR 11-22 10:04:13 [core.py:1510] EngineCore failed to start.
(EngineCore pid=9) ERROR 11-22 10:04:13 [core.py:1510]     raise value.as_instanceof_cause()
(EngineCore pid=9) ERROR 11-22 10:04:13 [core.py:1510] ray.exceptions.RayTaskError(RuntimeError): \
ray::RayWorkerProc.initialize_worker() (pid=490, ip=10.77.52.13, actor_id=d56cf4)
(EngineCore pid=9) ERROR 11-22 10:04:13 [core.py:1510]     raise RuntimeError(
(EngineCore pid=9) ERROR 11-22 10:04:13 [core.py:1510] RuntimeError: Cannot find any model weights
Process EngineCore:
ray.exceptions.RayTaskError(RuntimeError): ray::RayWorkerProc.initialize_worker() (pid=490)
RuntimeError: Cannot find any model weights
RuntimeError: Engine core initialization failed. See root cause above.
""".splitlines()


def test_what_failed_on_another_host_is_the_cause_and_not_that_ray_says_so() -> None:
    causes = FirstOfBurst()
    for line in OF_RAY:
        causes.feed(line, 100.0)
    assert named(causes.at_end(100.0)) == "RuntimeError: Cannot find any model weights"
    assert named("ray.exceptions.RayActorError: it died") == "ray.exceptions.RayActorError: it died"


def test_an_error_of_long_ago_is_no_cause() -> None:
    causes = FirstOfBurst()
    causes.feed("ValueError: one request was wrong", 0.0)
    assert causes.at_end(31.0) == ""
    causes.feed("MemoryError: now", 100.0)
    causes.feed("RuntimeError: therefore", 120.0)
    assert causes.at_end(145.0) == "MemoryError: now"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("ValueError: no room  ", "ValueError: no room"),
        ("[rank0] torch.cuda.OutOfMemoryError: CUDA", "torch.cuda.OutOfMemoryError: CUDA"),
        ("(Worker pid=7) ray.exceptions.RayError: x", "ray.exceptions.RayError: x"),
        ("(A pid=1) WARNING 11-21 [x.py:1] ImportError: no flash_attn", ""),
        ("    raise ValueError(", ""),
        ("Errors: 3", ""),
        ("", ""),
    ],
)
def test_a_line_names_an_error_or_none(line: str, error: str) -> None:
    assert named(line) == error
