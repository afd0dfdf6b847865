from __future__ import annotations

from vllmdeploy.accelerators.cpu import ACCELERATOR, declared
from vllmdeploy.core.card import Card, CardReport, Fabric
from vllmdeploy.core.command import Result


def test_the_host_memory_is_read() -> None:
    text = "MemTotal:       24576000 kB\nMemFree:        1000 kB\n"
    assert ACCELERATOR.cards.parse(Result(0, text)) == CardReport(
        vendor="cpu", host_memory_mib=24000
    )


def test_an_unreadable_memory_is_a_problem() -> None:
    assert ACCELERATOR.cards.parse(Result(1, "", "cat: no such file")) == CardReport(
        vendor="cpu", problem="/proc/meminfo could not be read: cat: no such file"
    )


def test_declared_ranks_share_the_memory() -> None:
    report = CardReport(vendor="cpu", host_memory_mib=24000)
    assert declared(report, 2) == (
        Card(index=0, name="CPU", memory_total_mib=12000),
        Card(index=1, name="CPU", memory_total_mib=12000),
    )
    assert declared(report, 0) == ()


def test_the_container_may_bind_threads() -> None:
    assert ACCELERATOR.container((), True).arguments == (
        *("--security-opt", "seccomp=unconfined", "--cap-add", "SYS_NICE"),
    )


def test_gloo_gets_the_interface_and_nccl_is_not_mentioned() -> None:
    assert ACCELERATOR.network_environment(Fabric(ip="10.0.0.1", interface="eth0; reboot")) == {
        "GLOO_SOCKET_IFNAME": "eth0; reboot",
        "TP_SOCKET_IFNAME": "eth0; reboot",
    }
