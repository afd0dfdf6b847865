"""Sizes and times that bound what one peer can cost us."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class HeadLimits:
    size: int = 64 * 1024
    fields: int = 128


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """What those who call us may do. Times in seconds, sizes in bytes."""

    head_s: float = 10.0
    body_idle_s: float = 20.0
    body_rate: int = 1024
    body_rate_after_s: float = 10.0
    keep_alive_s: float = 75.0
    write_stall_s: float = 60.0
    linger_s: float = 2.0
    body: int = 32 * MIB
    buffered: int = 512 * MIB
    connections: int = 16_384
    connections_per_address: int = 1_024


@dataclass(frozen=True, slots=True)
class UpstreamTimes:
    """How long an upstream may take, in seconds.

    `idle_connection_s` stays below the 5 s after which vLLM closes an idle connection, so that we
    are the one to close it.
    """

    connect_s: float = 2.0
    first_byte_s: float = 300.0
    idle_s: float = 60.0
    total_s: float = 1800.0
    idle_connection_s: float = 4.0


HEAD_LIMITS = HeadLimits()
CLIENT_LIMITS = ClientLimits()
UPSTREAM_TIMES = UpstreamTimes()
