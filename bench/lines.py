"""What plain TCP gets out of lines that all send and receive at once: the limit for any sync."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from tests.rig import network
from tests.rig.rig import Rig

_PORT = 9999
_WARM_S, _LONG_S = 5.0, 20.0
# Counts what comes in over all connections between two moments after the start.
_RECEIVE = """
import socket, sys, threading, time
port, warm, long = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
listening = socket.create_server(("", port), backlog=16)
came = []
def read(connection):
    mine = [0]
    came.append(mine)
    room = bytearray(1 << 16)
    while count := connection.recv_into(room):
        mine[0] += count
def accept():
    while True:
        threading.Thread(target=read, args=(listening.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
print("listening", flush=True)
time.sleep(warm)
before, began = sum(one[0] for one in came), time.monotonic()
time.sleep(long)
print((sum(one[0] for one in came) - before) / (time.monotonic() - began), flush=True)
"""
_SEND = """
import socket, sys, time
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])))
ends = time.monotonic() + float(sys.argv[3])
while time.monotonic() < ends:
    connection.sendall(bytes(1 << 16))
"""


def share(rig: Rig, mbit: int, steps: Sequence[int]) -> float:
    """Every host sends to those so many places further on, in a ring, without a pause: how much of
    a host's line is what arrives, less all headers, on the average."""
    hosts = (rig.head, *rig.workers)
    receivers = [
        _in(rig, host.name, _RECEIVE, str(_PORT), str(_WARM_S), str(_LONG_S)) for host in hosts
    ]
    for receiver in receivers:
        _line(receiver)
    lasts = str(_WARM_S + _LONG_S + 2)
    senders = [
        _in(rig, host.name, _SEND, hosts[(number + step) % len(hosts)].ip, str(_PORT), lasts)
        for number, host in enumerate(hosts)
        for step in steps
    ]
    try:
        rates = [float(_line(receiver)) for receiver in receivers]
    finally:
        for process in (*senders, *receivers):
            process.kill()
            process.wait()
    return sum(rates) / len(rates) / (mbit * 1e6 / 8)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def _in(rig: Rig, host: str, program: str, *words: str) -> subprocess.Popen[str]:
    own = network.namespace(rig.head.number, host)
    argv = ("ip", "netns", "exec", own, sys.executable, "-c", program, *words)
    return subprocess.Popen(
        argv,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
