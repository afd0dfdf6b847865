"""Every number that health, retries and waiting go by, with its default."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Thresholds:
    check_interval_s: float = 2.0
    check_jitter: float = 0.2
    check_timeout_s: float = 2.0
    check_interval_out_s: float = 0.5
    fall: int = 2
    rise: int = 2

    canary: bool = True
    canary_interval_s: float = 15.0
    # With the interval, and a check that may be 2.4 s away then: hung for less than 35 s in all.
    canary_timeout_s: float = 17.0
    stall_after_s: float = 30.0

    faults_in_row: int = 3
    fault_ratio: float = 0.5
    fault_ratio_min_requests: int = 20
    fault_window_s: int = 10

    ejection_s: float = 5.0
    ejection_max_s: float = 300.0
    ejection_jitter: float = 0.2
    ejection_forgiven_after_s: float = 30.0
    ejected_share_max: float = 0.5
    panic_below: float = 0.5
    slow_start_s: float = 10.0
    slow_start_from: float = 0.1

    busy_hold_s: float = 0.25
    busy_hold_max_s: float = 4.0

    retries: int = 2
    poisoned_instances_max: int = 2
    retry_share: float = 0.2
    retry_min: int = 3
    retry_delay_min_s: float = 0.025
    retry_delay_max_s: float = 0.25

    connect_timeout_s: float = 2.0
    first_byte_timeout_s: float = 300.0
    idle_timeout_s: float = 60.0
    total_timeout_s: float = 1800.0
    drain_timeout_s: float = 120.0
    queue_timeout_s: float = 60.0
    queue_length: int = 4096


DEFAULTS = Thresholds()
