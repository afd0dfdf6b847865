"""Why an image was not built, out of what Docker's two builders say."""

from __future__ import annotations

import pytest

from vllmdeploy.core.command import Result
from vllmdeploy.tools.images import why_not_built

# `docker build` of 20.10: programs on stdout, Docker's verdict on stderr.
OLD = """\
Sending build context to Docker daemon  990.1MB\r\r
Step 1/9 : ARG BASE
Step 6/9 : RUN sh /vllmdeploy-build/add.sh ray "${RAY}"
 ---> Running in 0c3f52ac0b5d
\x1b[91mERROR: No matching distribution found for ray[default]==2.60.0
\x1b[0mRemoving intermediate container 0c3f52ac0b5d
"""
OLD_VERDICT = """\
The command '/bin/sh -c sh /vllmdeploy-build/add.sh ray "${RAY}"' returned a non-zero code: 1
"""
# BuildKit: all of it on stderr.
NEW = """\
#8 [made 3/3] RUN sh /vllmdeploy-build/add.sh cpu "2.60.0" "0.32.0" "2.13.0"
#8 0.412 this image has no libnuma1, which vLLM needs
#8 ERROR: process "/bin/sh -c sh /vllmdeploy-build/add.sh" did not complete: exit code: 1
------
 > [made 3/3] RUN sh /vllmdeploy-build/add.sh cpu "2.60.0" "0.32.0" "2.13.0":
0.412 this image has no libnuma1, which vLLM needs
------
Dockerfile.cpu:13
--------------------
  11 |     ARG PIP_EXTRA_INDEX_URL
  13 | >>> RUN sh /vllmdeploy-build/add.sh cpu "${RAY}" "${VLLM}" "${TORCH}"
--------------------
ERROR: failed to solve: process "/bin/sh -c sh" did not complete successfully: exit code: 1
"""


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (
            Result(1, OLD, OLD_VERDICT),
            "ERROR: No matching distribution found for ray[default]==2.60.0",
        ),
        (Result(1, "", NEW), "this image has no libnuma1, which vLLM needs"),
        (
            Result(1, "", "Cannot connect to the Docker daemon"),
            "Cannot connect to the Docker daemon",
        ),
        (Result(1, "Step 1/2 : FROM x\n", "ERROR: failed to solve: x\n"), None),
        (Result(1), None),
    ],
)
def test_the_last_words_of_what_ran_are_told(result: Result, why: str | None) -> None:
    assert why_not_built(result) == (result.output if why is None else why)
