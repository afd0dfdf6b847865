from __future__ import annotations

import pytest

from vllmdeploy.effects.hub import Progress


@pytest.mark.parametrize(
    ("done", "pace", "left"), [(418, 179.0, None), (1000, 0.0, None), (1000, 100.0, 9990.0)]
)
def test_time_left_is_told_once_a_thousandth_has_come(
    done: int, pace: float, left: float | None
) -> None:
    told = Progress(
        files_done=2, files_total=3, bytes_done=done, bytes_total=1_000_000, bytes_per_s=pace
    )
    assert told.seconds_left == left
