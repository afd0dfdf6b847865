"""One Ray node under three supervisors, as the commands that a person would read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.builders import IMAGE, PACKAGE, TOKEN, bare, decided, wanted
from vllmdeploy.core.card import Card, CardReport
from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.layout import Layout
from vllmdeploy.core.plan import Plan
from vllmdeploy.plan.node_steps import Payload
from vllmdeploy.plan.observed import FoundHost, FoundNode
from vllmdeploy.plan.supervise import AsProcess, InDocker, InSystemd, Supervisor, supervisor
from vllmdeploy.plan.up import plan_up
from vllmdeploy.plan.wanted import Wanted
from vllmdeploy.tools.system import System

LAYOUT = Layout("/var/lib/vllmdeploy/vllm")
RAY = (
    "ray start --block --head --node-ip-address=10.0.0.1 --node-name=gpu-01 --port=6379"
    " --include-dashboard=true --dashboard-host=127.0.0.1 --dashboard-port=8265"
    " --ray-client-server-port=10001 --node-manager-port=10010 --object-manager-port=10011"
    " --runtime-env-agent-port=10012 --dashboard-agent-grpc-port=10013"
    " --dashboard-agent-listen-port=52365 --metrics-export-port=10014 --min-worker-port=20000"
    " --max-worker-port=20999"
)
AFTER_NETWORK = (
    " -e AUTOSCALER_METRIC_PORT=10015 -e DASHBOARD_METRIC_PORT=10016 -e RAY_AUTH_MODE={auth}"
    " -e RAY_health_check_initial_delay_ms=5000 -e RAY_health_check_period_ms=1000"
    " -e RAY_health_check_timeout_ms=3000 -e RAY_health_check_failure_threshold=5"
    " -e RAY_memory_monitor_refresh_ms=0 -e VLLM_NO_USAGE_STATS=1 -e DO_NOT_TRACK=1"
    " -e HF_HUB_OFFLINE=1 -e TRANSFORMERS_OFFLINE=1"
    " -e NO_PROXY=localhost,127.0.0.1,10.0.0.1,10.0.0.0/24"
    " -e no_proxy=localhost,127.0.0.1,10.0.0.1,10.0.0.0/24"
)


def container(
    *,
    cards: str,
    path: str,
    early: str,
    network: str,
    secret: str,
    cache: str,
    access: str,
    count: int,
) -> str:
    """What is the same for all vendors, written once."""
    auth = "token" if secret else "disabled"
    return (
        "docker run --detach --name vllm-ray-head --restart unless-stopped --network host"
        " --shm-size 16g --stop-timeout 65 --ulimit memlock=-1:-1 --ulimit stack=67108864"
        " --ulimit nofile=1048576:1048576 --log-driver json-file --log-opt max-size=50m"
        " --log-opt max-file=3 --security-opt label=disable --security-opt no-new-privileges"
        " --label vllmdeploy.cluster=vllm --label vllmdeploy.group=default"
        " --label vllmdeploy.role=ray-head --label vllmdeploy.generation=1"
        f" --label vllmdeploy.fingerprint=FINGERPRINT --label vllmdeploy.cards={cards}"
        f" --label vllmdeploy.package={PACKAGE} -e PYTHONPATH=/opt/vllmdeploy/vllmdeploy.zip{path}"
        " -e VLLM_CACHE_ROOT=/var/cache/vllmdeploy/vllm"
        " -e TRITON_CACHE_DIR=/var/cache/vllmdeploy/triton"
        f" -e TORCHINDUCTOR_CACHE_DIR=/var/cache/vllmdeploy/inductor{early}"
        " -e VLLM_HOST_IP=10.0.0.1 -e GLOO_SOCKET_IFNAME=eth0 -e TP_SOCKET_IFNAME=eth0"
        f"{network}{AFTER_NETWORK.format(auth=auth)}{secret}"
        " -v /var/lib/vllmdeploy/vllm/services:/run/vllmdeploy/services:ro"
        " -v /var/lib/vllmdeploy/vllm/run/vllm-ray-head:/run/vllmdeploy/run"
        " -v /var/lib/vllmdeploy/vllm/logs/vllm-ray-head:/var/log/vllmdeploy"
        f" -v /var/lib/vllmdeploy/vllm/cache/111111111111-{cache}:/var/cache/vllmdeploy"
        " -v /data/models:/data/models:ro"
        f" -v /var/lib/vllmdeploy/vllm/pkg/{PACKAGE}:/opt/vllmdeploy:ro{access}"
        f" --entrypoint python3 {IMAGE.id} -m vllmdeploy.node.warden --name vllm-ray-head"
        " --role head --node gpu-01 --run /run/vllmdeploy/run --logs /var/log/vllmdeploy"
        " --services /run/vllmdeploy/services --ray-address 10.0.0.1:6379 --stop-limit 60 --"
        f" {RAY} --num-gpus={count} --disable-usage-stats"
    )


def created(what: Wanted, found: FoundHost, under: Supervisor) -> tuple[Plan, Command]:
    plan = plan_up(what, decided(what, [found]), Payload(b"zip", TOKEN), under)
    key = "gpu-01: create vllm-ray-head"
    return plan, next(step.command for step in plan if step.key == key)


def text(command: Command) -> str:
    """With the fingerprint left out, which only says that something changed."""
    said = str(command)
    mark = said.partition("vllmdeploy.fingerprint=")[2][:12]
    return said.replace(mark, "FINGERPRINT") if mark else said


def host(vendor: str = "nvidia", count: int = 2, **changes: Any) -> FoundHost:
    found = bare("gpu-01", "10.0.0.1", head=True, **changes)
    name = {"nvidia": "NVIDIA H200", "hygon": "K100_AI", "amd": "MI300X"}.get(vendor, "")
    cards = tuple(Card(index=index, name=name) for index in range(count))
    return replace(found, cards=CardReport(vendor=vendor, cards=cards))


def test_some_of_the_nvidia_cards_for_a_user_that_is_not_root() -> None:
    found = host(gpus=(1,))
    assert found.contents is not None
    found = replace(
        found,
        image=replace(IMAGE, python_path="/opt/a:/opt/b"),
        contents=replace(found.contents, uid=1000, gid=1001),
    )
    plan, command = created(wanted(), found, InDocker())
    assert text(command) == container(
        cards="1",
        path=":/opt/a:/opt/b",
        early=" -e RAY_AUTH_TOKEN_PATH=/run/vllmdeploy/secrets/ray_token"
        " -e CUDA_DEVICE_ORDER=PCI_BUS_ID",
        network=" -e NCCL_SOCKET_IFNAME==eth0",
        secret=" -v /var/lib/vllmdeploy/vllm/secrets/ray:/run/vllmdeploy/secrets:ro",
        cache="nvidia-h200",
        access=" --gpus '\"device=1\"'",
        count=1,
    )
    owned = [str(step.command) for step in plan if "1000" in str(step.command)]
    assert [line.partition(" --")[0] for line in owned[:1]] == [
        "install -d -m 0700 -o 1000 -g 1001"
    ]
    assert owned[1].endswith("/secrets/ray/ray_token 16 0600 1000:1001")
    assert owned[2] == (
        "install -d -m 0755 -o 1000 -g 1001 -- /var/lib/vllmdeploy/vllm/services"
        " /var/lib/vllmdeploy/vllm/run/vllm-ray-head"
        " /var/lib/vllmdeploy/vllm/logs/vllm-ray-head"
        " /var/lib/vllmdeploy/vllm/cache/111111111111-nvidia-h200"
    )


NOSET = (
    " -e NCCL_SOCKET_IFNAME==eth0 -e RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES=1"
    " -e RAY_EXPERIMENTAL_NOSET_ROCR_VISIBLE_DEVICES=1"
)
DEBUG = " --group-add video --cap-add SYS_PTRACE --security-opt seccomp=unconfined"


@pytest.mark.parametrize(
    ("vendor", "count", "network", "cache", "access"),
    [
        (
            "hygon",
            2,
            NOSET,
            "k100-ai",
            " --device /dev/kfd --device /dev/mkfd --device /dev/dri"
            f" --mount type=bind,source=/opt/hyhal,target=/opt/hyhal,readonly{DEBUG}",
        ),
        ("amd", 2, NOSET, "mi300x", f" --device /dev/kfd --device /dev/dri{DEBUG}"),
        (
            "cpu",
            0,
            " -e VLLMDEPLOY_CPU_PLATFORM=1 -e VLLM_CPU_OMP_THREADS_BIND=nobind",
            "cpu",
            "",
        ),
    ],
)
def test_other_vendors_differ_where_they_must(
    vendor: str, count: int, network: str, cache: str, access: str
) -> None:
    _, command = created(wanted(ray_auth="none"), host(vendor, count), InDocker())
    assert text(command) == container(
        cards=",".join(map(str, range(count))),
        path="",
        early="",
        network=network,
        secret="",
        cache=cache,
        access=access,
        count=count,
    )


def test_what_the_user_adds_comes_last_and_wins() -> None:
    what = wanted(
        docker_arguments=("--memory", "8g $(id)"),
        environment={"VLLM_HOST_IP": "x y", "A": "'; id"},
        ray_cpus=3,
    )
    _, command = created(what, host(), InDocker())
    argv = command.argv
    assert argv[argv.index("--entrypoint") - 2 : argv.index("--entrypoint")] == (
        "--memory",
        "8g $(id)",
    )
    assert "VLLM_HOST_IP=x y" in argv
    assert "VLLM_HOST_IP=10.0.0.1" not in argv
    assert "A='; id" in argv
    assert "--num-cpus=3" in argv


def test_live_rdma_devices_are_handed_over() -> None:
    found = host()
    found = replace(found, links=replace(found.links, rdma=("mlx5_0", "mlx5_1")))
    _, command = created(wanted(), found, InDocker())
    line = str(command)
    assert " --gpus all --device /dev/infiniband --cap-add IPC_LOCK --entrypoint" in line
    assert " -e NCCL_IB_HCA==mlx5_0,mlx5_1 " in line


def test_cards_by_cdi_where_the_engine_is_set_up_so() -> None:
    _, command = created(wanted(cdi=True), host(), InDocker())
    assert " --device nvidia.com/gpu=all --entrypoint" in str(command)


def test_proxies_go_along_unless_they_hold_a_password() -> None:
    system = System(
        hostname="gpu-01",
        machine="x86_64",
        proxies=(("http_proxy", "http://p:3128"), ("https_proxy", "http://u:secret@p:3128")),
    )
    plan, command = created(wanted(), host(system=system), InDocker())
    assert "http_proxy=http://p:3128" in command.argv
    assert not any("secret@" in str(step.command) for step in plan)
    assert "gpu-01: https_proxy holds a password and is not passed on" in plan.notes


PYTHON = "/opt/py/bin/python3"
OUTSIDE = wanted(runtime="process", python=PYTHON, ray_auth="none")
PROGRAM = (
    "PATH=/opt/py/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    " VLLM_CACHE_ROOT=/var/lib/vllmdeploy/vllm/cache/host-0-17-0-nvidia-h200/vllm"
    " TRITON_CACHE_DIR=/var/lib/vllmdeploy/vllm/cache/host-0-17-0-nvidia-h200/triton"
    " TORCHINDUCTOR_CACHE_DIR=/var/lib/vllmdeploy/vllm/cache/host-0-17-0-nvidia-h200/inductor"
    " CUDA_VISIBLE_DEVICES=1 VLLM_HOST_IP=10.0.0.1 GLOO_SOCKET_IFNAME=eth0"
    " TP_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME==eth0"
    + AFTER_NETWORK.format(auth="disabled").replace(" -e ", " ")
    + f" {PYTHON} -m vllmdeploy.node.warden --name vllm-ray-head --role head --node gpu-01"
    " --run /var/lib/vllmdeploy/vllm/run/vllm-ray-head"
    " --logs /var/lib/vllmdeploy/vllm/logs/vllm-ray-head"
    " --services /var/lib/vllmdeploy/vllm/services --ray-address 10.0.0.1:6379 --stop-limit 60 --"
    f" {RAY} --num-gpus=1 --disable-usage-stats"
)


def test_the_same_node_as_a_process() -> None:
    _, command = created(OUTSIDE, host(gpus=(1,)), AsProcess(PYTHON))
    run, size, program = command.argv[-3:]
    assert run == "/var/lib/vllmdeploy/vllm/run/vllm-ray-head"
    assert command.stdin is not None
    assert size == str(len(command.stdin))
    assert program == (
        f"exec env PYTHONPATH=/var/lib/vllmdeploy/vllm/pkg/abcdef123456/vllmdeploy.zip {PROGRAM}\n"
    )
    assert b'"vllmdeploy.cards": "1"' in command.stdin


def test_the_same_node_as_a_unit() -> None:
    _, command = created(OUTSIDE, host(gpus=(1,)), InSystemd(PYTHON))
    unit = "vllmdeploy-vllm-ray-head.service"
    assert command.stdin is not None
    size = str(len(command.stdin))
    assert command.argv[-3:] == (f"/etc/systemd/system/{unit}", size, unit)
    text = command.stdin.decode()
    assert "RAY_AUTH_MODE=disabled" in text
    assert f"{PYTHON}" in text


def test_all_cards_need_no_variable() -> None:
    _, command = created(OUTSIDE, host(), AsProcess(PYTHON))
    assert "CUDA_VISIBLE_DEVICES" not in str(command)


def test_a_token_outside_a_container_is_read_where_it_lies() -> None:
    what = replace(OUTSIDE, ray_auth="token", python="python3")
    _, command = created(what, host(), AsProcess("python3"))
    assert "RAY_AUTH_TOKEN_PATH=/var/lib/vllmdeploy/vllm/secrets/ray/ray_token" in command.argv[-1]
    assert " PATH=/usr/local/sbin:" in command.argv[-1]


NODE = FoundNode(name="n", id="id-of-n", role="ray-head", group="default", running=True)
RUN, LOGS = "/var/lib/vllmdeploy/vllm/run/n", "/var/lib/vllmdeploy/vllm/logs/n"


def last_words(*commands: Command) -> list[str]:
    """The commands without the fixed shell text in them."""
    return [
        " ".join(one.argv if one.argv[0] != "sh" else ("sh", *one.argv[4:])) for one in commands
    ]


@pytest.mark.parametrize(
    ("under", "expected"),
    [
        (
            InDocker(),
            [
                "docker start n",
                "docker restart -t 65 n",
                "docker stop -t 65 id-of-n",
                "docker rm --force --volumes id-of-n",
                "docker exec n python3 -m vllmdeploy.node.ctl --run /run/vllmdeploy/run status",
                "docker logs --timestamps --tail 5 --follow n",
                "docker logs --timestamps n",
            ],
        ),
        (
            AsProcess("python3"),
            [
                f"sh {RUN}",
                f"sh {RUN} 65",
                f"sh {RUN}",
                f"sh {RUN} 65",
                f"sh {RUN}",
                "env PYTHONPATH=/var/lib/vllmdeploy/vllm/pkg/p/vllmdeploy.zip python3 -m"
                f" vllmdeploy.node.ctl --run {RUN} status",
                f"sh {LOGS} 5 -F n.log",
                f"sh {LOGS} +1  n.log",
            ],
        ),
    ],
)
def test_a_node_is_mended_asked_and_removed(under: Supervisor, expected: list[str]) -> None:
    assert (
        last_words(
            under.start(NODE, LAYOUT),
            *under.restart(NODE, LAYOUT),
            *under.remove(NODE, LAYOUT),
            under.ctl("n", LAYOUT, "p", "status"),
            under.logs("n", LAYOUT, tail=5, follow=True),
            under.logs("n", LAYOUT),
        )
        == expected
    )


def test_a_unit_is_mended_by_systemd() -> None:
    under = InSystemd("python3")
    commands = (
        under.start(NODE, LAYOUT),
        *under.restart(NODE, LAYOUT),
        *under.remove(NODE, LAYOUT),
        under.logs("n", LAYOUT, tail=5, follow=True),
    )
    for command in commands:
        assert "vllmdeploy-n.service" in str(command)
    assert under.ctl("n", LAYOUT, "p", "nodes").argv[-3:] == ("--run", RUN, "nodes")


@pytest.mark.parametrize(
    ("runtime", "kind"),
    [("docker", InDocker), ("process", AsProcess), ("systemd", InSystemd)],
)
def test_the_runtime_decides_who_supervises(runtime: str, kind: type[Supervisor]) -> None:
    assert type(supervisor(wanted(runtime=runtime))) is kind


@pytest.mark.parametrize("under", [InDocker(), AsProcess("python3"), InSystemd("python3")])
def test_a_host_that_answers_nothing_has_no_nodes(under: Supervisor) -> None:
    assert under.found(LAYOUT).parse(Result(0)) == ()
