"""Every reason to refuse, and every remark, as the words a person reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.plan.builders import IMAGE, bare, decided, foreign, link, two_hosts, wanted
from vllmdeploy.core.card import Card, CardReport
from vllmdeploy.plan.observed import FoundHost, FoundNode, labelled_node
from vllmdeploy.tools.docker import Container, Engine
from vllmdeploy.tools.image_probe import ImageContents
from vllmdeploy.tools.network import Links
from vllmdeploy.tools.system import Firewall, Listener, System

NVIDIA_GONE = "2 NVIDIA cards on the PCI bus, but there is no /dev/nvidia*: is the driver loaded?"
SICK = tuple(Card(index=index, problem=NVIDIA_GONE) for index in range(2))
OTHER_USER = ImageContents(python="3.12.3", ray="2.60.0", vllm="0.17.0", uid=1000, gid=1000)


def head(**changes: Any) -> FoundHost:
    return bare("gpu-01", "10.0.0.1", head=True, **changes)


def reasons(*found: FoundHost, **changes: Any) -> tuple[str, ...]:
    return decided(wanted(**changes), list(found))["default"].refusals


def by_user(uid: int, *, sudo: bool = False) -> FoundHost:
    found = head(contents=OTHER_USER)
    return replace(found, access=replace(found.access, user="ann", uid=uid, sudo_files=sudo))


@pytest.mark.parametrize(
    ("found", "changes", "expected"),
    [
        pytest.param(head(), {}, (), id="nothing"),
        pytest.param(
            head(image_name="", image=None, cards=CardReport(vendor="amd")),
            {},
            ("gpu-01: amd has no usual image: set IMAGE",),
            id="no image",
        ),
        pytest.param(
            head(image=None, contents=None, unpullable="no such manifest: x"),
            {},
            (
                "gpu-01: image vllm/vllm-openai:v0.17.0 is not there and cannot be pulled:"
                " no such manifest: x (bring it with `vllmdeploy image push`, or docker load)",
            ),
            id="an image that is nowhere",
        ),
        pytest.param(head(image=None, contents=None), {}, (), id="an image that can be pulled"),
        pytest.param(
            head(contents=ImageContents(problem="it has no python3: not a vLLM image")),
            {},
            ("gpu-01: image vllm/vllm-openai:v0.17.0: it has no python3: not a vLLM image",),
            id="an image of something else",
        ),
        pytest.param(
            head(contents=ImageContents(python="3.10.1", ray="2.9.0", vllm="0.5")),
            {"ray_auth": "none"},
            (
                "gpu-01: image vllm/vllm-openai:v0.17.0 has Ray 2.9.0; 2.40 is the oldest"
                " that works",
            ),
            id="an old Ray",
        ),
        pytest.param(
            head(contents=ImageContents(python="3.12.1", ray="2.44.1", vllm="0.8.5")),
            {"ray_auth": "none"},
            (
                "gpu-01: image vllm/vllm-openai:v0.17.0 has Ray 2.44.1, whose compiled graphs vLLM"
                " cannot use: build one with another Ray",
            ),
            id="a Ray that is known to be bad",
        ),
        pytest.param(
            head(
                contents=ImageContents(python="3.12.3", ray="2.60.0", vllm="0.33.0", cuda="13.0"),
                cards=CardReport(
                    vendor="nvidia", cards=(Card(index=0),), driver_version="550.54.15"
                ),
            ),
            {},
            (
                "gpu-01: image vllm/vllm-openai:v0.17.0 needs CUDA 13.0; driver 550.54.15 runs CUDA"
                " 12.4 at most: update the driver, or take an image built for an older CUDA",
            ),
            id="a CUDA that the driver does not run",
        ),
        pytest.param(
            head(engine=Engine(problem="docker is not installed"), image=None, contents=None),
            {},
            ("gpu-01: docker is not installed",),
            id="no Docker is said once",
        ),
        pytest.param(
            head(cards=CardReport(vendor="nvidia", cards=SICK, problem=NVIDIA_GONE)),
            {},
            (f"gpu-01: nvidia: {NVIDIA_GONE}",),
            id="cards without a driver",
        ),
        pytest.param(
            head(
                cards=CardReport(
                    vendor="nvidia", cards=(Card(index=0), SICK[1]), problem="card 1 is ill"
                )
            ),
            {},
            (),
            id="one good card is enough",
        ),
        pytest.param(
            head(listeners=(Listener(port=8265), Listener(port=8265), Listener(port=22))),
            {},
            (
                "gpu-01: port 8265 is taken by a program we may not see"
                " (choose another in config.env)",
            ),
            id="a port is said once",
        ),
        pytest.param(
            by_user(1001),
            {},
            (
                "gpu-01: vllm/vllm-openai:v0.17.0 runs as uid 1000, ann is 1001 and may not hand"
                " folders over: allow sudo, or log in as root",
            ),
            id="a user that cannot hand folders over",
        ),
        pytest.param(by_user(1001, sudo=True), {}, (), id="with sudo it can"),
        pytest.param(by_user(1000), {}, (), id="it is the same user"),
        pytest.param(by_user(0), {}, (), id="root can"),
        pytest.param(
            head(contents=ImageContents(problem="python3: not found")),
            {"runtime": "process"},
            ("gpu-01: python3: python3: not found",),
            id="no interpreter outside Docker",
        ),
        pytest.param(
            head(contents=None, containers=(foreign("vllm-ray-head"),)),
            {"runtime": "systemd"},
            (),
            id="outside Docker no container is in the way",
        ),
    ],
)
def test_reasons_to_refuse(
    found: FoundHost, changes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    assert reasons(found, **changes) == expected


def test_a_port_of_a_node_in_its_other_role_is_ours() -> None:
    node = labelled_node(
        "vllm-ray-worker", {"vllmdeploy.role": "ray-worker"}, running=True, state="running"
    )
    found = head(supervised=(node,), listeners=(Listener(port=10010, pid=1, program="raylet"),))
    assert reasons(found) == ()
    instance = replace(node, role="instance")
    assert reasons(replace(found, supervised=(instance,))) != ()


def remarks(*found: FoundHost, **changes: Any) -> tuple[str, ...]:
    return decided(wanted(**changes), list(found))["default"].notes


def test_what_should_be_known_is_said() -> None:
    first, second = two_hosts()
    system = System(hostname="b", machine="x86_64", clock=1_300, selinux="Enforcing")
    second = replace(second, system=system)
    assert remarks(first, second)[-2:] == (
        "gpu-02: its clock is 300 s ahead of others",
        "gpu-02: SELinux is enforcing; containers run with label=disable",
    )


def test_firewalld_gets_lines_of_its_own() -> None:
    first, second = two_hosts()
    notes = remarks(first, replace(second, firewall=Firewall("firewalld")))
    assert notes[-4:] == (
        "gpu-02: firewalld is active; the other hosts must get through:",
        "  sudo firewall-cmd --permanent --add-rich-rule="
        '\'rule family="ipv4" source address="10.0.0.1" accept\'',
        "  sudo firewall-cmd --reload",
        "  (Ray: 10010,10011,10012,10013,52365,10014,20000-20999;"
        " the ranks themselves use ephemeral ports)",
    )


def test_a_firewall_of_a_single_host_is_in_nobodys_way() -> None:
    assert not any("firewalld" in note for note in remarks(head(firewall=Firewall("firewalld"))))


def test_a_faster_interface_that_is_named_by_the_user_is_not_complained_about() -> None:
    links = Links(interfaces=(link("10.0.0.1"), link("10.9.0.1", "ib0", 200_000)))
    found = head(links=links, interface="ib0")
    assert remarks(found) == ("gpu-01: 10.9.0.1 on ib0, 200 Gbit/s",)


def test_an_unusable_network_leaves_nothing_half_decided() -> None:
    group = decided(wanted(), [head(interface="eth9")])["default"]
    assert group.members == ()
    assert group.refusals == ("gpu-01: no interface eth9 with an IPv4 address; it has eth0",)


@pytest.mark.parametrize(
    ("container", "state"),
    [
        ({"state": "exited", "exit_code": 1}, "exited (1)"),
        ({"state": "exited", "exit_code": 137, "oom_killed": True}, "exited (137, out of memory)"),
        ({"state": "created"}, "created"),
    ],
)
def test_a_container_says_how_it_ended(container: dict[str, Any], state: str) -> None:
    labels = {
        "vllmdeploy.cluster": "vllm",
        "vllmdeploy.generation": "²",
        "vllmdeploy.cards": "0,²,-1,x,3",
    }
    one = Container(id="i", name="n", image="x", image_id=IMAGE.id, labels=labels, **container)
    (node,) = head(containers=(one, foreign("other"))).ours("vllm")
    assert node == FoundNode(
        name="n",
        id="i",
        role="",
        group="",
        cluster="vllm",
        running=False,
        state=state,
        cards=(0, 3),
        image_id=IMAGE.id,
    )
