"""`export systemd|compose|firewall`: the files, as an administrator would read them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it brings no types, and only tests read YAML

from vllmdeploy.accelerators.registry import VENDORS
from vllmdeploy.config.settings import Loaded, load
from vllmdeploy.errors import PreflightRefused, UsageError
from vllmdeploy.workflows.export_files import Kind, export_instances
from vllmdeploy.workflows.export_firewall import firewall_lines
from vllmdeploy.workflows.instances_asked import asked_of

NODES = "gpu-01 ip=10.0.0.1 head=yes\ngpu-02 ip=10.0.0.2\n"


def loaded(folder: Path, *, nodes: str = NODES, **keys: str) -> Loaded:
    given = {
        "VLLM_PYTHON": "/usr/bin/python3",
        "IMAGE": "vllm:1",
        "ENGINE_PORTS": "8100-8199",
        **keys,
    }
    config = folder / "config.env"
    config.write_text("".join(f"{key}='{value}'\n" for key, value in given.items()))
    (folder / "worker_nodes.txt").write_text(nodes)
    return load(
        config_path=config,
        nodes_path=folder / "worker_nodes.txt",
        environ={},
        overrides=None,
        accelerators=tuple(VENDORS),
    )


def export(
    folder: Path, kind: Kind, *, count: int = 3, force: bool = False, cards: int = 2, **keys: str
) -> list[str]:
    given = loaded(folder, **keys)
    asked = asked_of(
        given.settings,
        "meta-llama/Llama-2-7b",
        profile_name=None,
        count=count,
        hosts=(),
        task="generate",
    )
    to = folder / "out"
    written = export_instances(given, asked.wanted, kind, to, cards=cards, force=force)
    return [str(path.relative_to(to)) for path in written]


def test_each_host_gets_a_template_unit_and_one_small_file_for_each_instance(
    tmp_path: Path,
) -> None:
    assert export(tmp_path, "systemd") == [
        "gpu-01/fleet.json",
        "gpu-01/vllmdeploy.zip",
        "gpu-01/Llama-2-7b@.service",
        "gpu-01/Llama-2-7b-1.env",
        "gpu-01/Llama-2-7b-3.env",
        "gpu-01/vllm-gateway.service",
        "gpu-01/install.sh",
        "gpu-02/Llama-2-7b@.service",
        "gpu-02/Llama-2-7b-2.env",
        "gpu-02/install.sh",
    ]
    head = tmp_path / "out/gpu-01"
    assert (head / "Llama-2-7b-3.env").read_text() == (
        "PORT=8002\nCUDA_VISIBLE_DEVICES=1\nCUDA_DEVICE_ORDER=PCI_BUS_ID\n"
    )
    text, _, hardening = (head / "Llama-2-7b@.service").read_text().partition("OOMPolicy=")
    assert (
        text
        == """\
# Written by `vllmdeploy export systemd`.
[Unit]
Description=vLLM instance %i of Llama-2-7b
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=900
StartLimitBurst=5

[Service]
Type=exec
EnvironmentFile=/etc/vllm/%p-%i.env
ExecStart="/usr/bin/python3" "-m" "vllm.entrypoints.openai.api_server" \
"--model" "/data/models/Llama-2-7b" \
"--served-model-name" "Llama-2-7b" "meta-llama/Llama-2-7b" "/data/models/Llama-2-7b" \
"--host" "127.0.0.1" "--port" "${PORT}" "--tensor-parallel-size" "1" "--max-model-len" "8192" \
"--max-num-seqs" "6" "--gpu-memory-utilization" "0.96"
TimeoutStopSec=60
CacheDirectory=vllmdeploy/%p
Environment="DO_NOT_TRACK=1"
Environment="HF_HUB_OFFLINE=1"
Environment="HOME=/var/cache/vllmdeploy/%p"
Environment="PYTHONSAFEPATH=1"
Environment="TORCHINDUCTOR_CACHE_DIR=/var/cache/vllmdeploy/%p/inductor"
Environment="TRANSFORMERS_OFFLINE=1"
Environment="TRITON_CACHE_DIR=/var/cache/vllmdeploy/%p/triton"
Environment="VLLM_CACHE_ROOT=/var/cache/vllmdeploy/%p/vllm"
Environment="VLLM_NO_USAGE_STATS=1"
Restart=always
RestartSec=10
"""
    )
    assert hardening.endswith("ReadWritePaths=/tmp\n\n[Install]\nWantedBy=multi-user.target\n")
    other = (tmp_path / "out/gpu-02/Llama-2-7b@.service").read_text()
    assert '"--host" "10.0.0.2" "--port" "${PORT}"' in other


def test_the_gateway_is_told_where_all_instances_are(tmp_path: Path) -> None:
    export(tmp_path, "systemd")
    fleet = json.loads((tmp_path / "out/gpu-01/fleet.json").read_text())
    assert [(one["id"], one["url"]) for one in fleet["upstreams"]] == [
        ("Llama-2-7b-1", "http://127.0.0.1:8001"),
        ("Llama-2-7b-2", "http://10.0.0.2:8001"),
        ("Llama-2-7b-3", "http://127.0.0.1:8002"),
    ]


def test_what_installs_the_units_makes_keys_once_and_starts_all(tmp_path: Path) -> None:
    export(tmp_path, "systemd")
    assert (tmp_path / "out/gpu-02/install.sh").read_text() == (
        "#!/bin/sh\n"
        "# Written by `vllmdeploy export systemd`; run it as root on its host, from this folder.\n"
        "set -eu\n"
        'cd "$(dirname "$0")"\n'
        "install -d -m 0755 /etc/vllm\n"
        "install -m 0644 Llama-2-7b-2.env /etc/vllm/\n"
        "install -m 0644 Llama-2-7b@.service /etc/systemd/system/\n"
        "systemctl daemon-reload\n"
        "systemctl enable --now Llama-2-7b@2.service\n"
    )
    first = (tmp_path / "out/gpu-01/install.sh").read_text()
    assert "for name in api_keys admin_key; do\n" in first
    for script in (tmp_path / "out").glob("*/install.sh"):
        done = subprocess.run(("shellcheck", script), capture_output=True, text=True, check=False)
        assert done.stdout == ""


def test_the_compose_file_is_yaml_with_a_card_set_for_each_instance(tmp_path: Path) -> None:
    assert export(tmp_path, "compose", EXTRA_ENV="A=$b") == [
        "gpu-01/compose.yaml",
        "gpu-01/fleet.json",
        "gpu-01/vllmdeploy.zip",
        "gpu-02/compose.yaml",
    ]
    services = yaml.safe_load((tmp_path / "out/gpu-01/compose.yaml").read_text())["services"]
    assert list(services) == ["Llama-2-7b-1", "Llama-2-7b-3", "gateway"]
    third = services["Llama-2-7b-3"]
    assert third["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "device_ids": ["1"], "capabilities": ["gpu"]}
    ]
    # Compose expands a single dollar.
    assert third["environment"]["A"] == "$$b"
    assert third["command"][third["command"].index("--port") + 1] == "8002"
    assert third["network_mode"] == "host"
    assert third["volumes"] == ["/data/models:/data/models:ro"]
    assert services["gateway"]["volumes"][-1] == "./state:/state"


@pytest.mark.parametrize("vendor", sorted(VENDORS))
def test_every_vendors_way_of_handing_cards_over_can_be_written(
    tmp_path: Path, vendor: str
) -> None:
    export(tmp_path, "compose", count=1, cards=2, ACCELERATOR=vendor)
    text = (tmp_path / "out/gpu-01/compose.yaml").read_text()
    assert "Llama-2-7b-1" in yaml.safe_load(text)["services"]


def test_a_flag_that_compose_would_lose_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--oom-score-adj"):
        export(tmp_path, "compose", EXTRA_DOCKER_ARGS="--oom-score-adj 5")


def test_files_of_other_content_are_kept_unless_forced(tmp_path: Path) -> None:
    export(tmp_path, "compose")
    mine = tmp_path / "out/gpu-01/compose.yaml"
    mine.write_text("mine")
    with pytest.raises(UsageError, match=r"other content is there: .*/gpu-01/compose\.yaml"):
        export(tmp_path, "compose")
    assert mine.read_text() == "mine"
    export(tmp_path, "compose", force=True)
    assert mine.read_text() != "mine"


def test_more_instances_than_cards_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(PreflightRefused, match="5 instances of 1 card each need 5 free cards"):
        export(tmp_path, "systemd", count=5)


def test_the_firewall_opens_the_fleets_ports_to_the_fleet_and_the_api_to_its_callers(
    tmp_path: Path,
) -> None:
    given = loaded(tmp_path, API_ALLOW="10.1.0.0/16", EXECUTOR="mp")
    found = firewall_lines(given, ())
    assert (
        found["gpu-01"]
        == """\
# gpu-01: ufw
ufw allow proto tcp from 10.0.0.2 to any port 8001:8004,8100:8199 comment vllmdeploy
ufw allow proto tcp from 10.1.0.0/16 to any port 8000 comment vllmdeploy
# gpu-01: firewalld
firewall-cmd --permanent '--add-rich-rule=rule family="ipv4" source address="10.0.0.2" \
port port="8001-8004" protocol="tcp" accept'
firewall-cmd --permanent '--add-rich-rule=rule family="ipv4" source address="10.0.0.2" \
port port="8100-8199" protocol="tcp" accept'
firewall-cmd --permanent '--add-rich-rule=rule family="ipv4" source address="10.1.0.0/16" \
port port="8000" protocol="tcp" accept'
firewall-cmd --reload
# gpu-01: nft
nft insert rule inet filter input 'ip saddr 10.0.0.2 tcp dport { 8001-8004, 8100-8199 } accept \
comment "vllmdeploy"'
nft insert rule inet filter input 'ip saddr 10.1.0.0/16 tcp dport { 8000 } accept \
comment "vllmdeploy"'
# gpu-01: iptables
iptables -I INPUT -s 10.0.0.2 -p tcp --dport 8001:8004 -m comment --comment vllmdeploy -j ACCEPT
iptables -I INPUT -s 10.0.0.2 -p tcp --dport 8100:8199 -m comment --comment vllmdeploy -j ACCEPT
iptables -I INPUT -s 10.1.0.0/16 -p tcp --dport 8000 -m comment --comment vllmdeploy -j ACCEPT"""
    )


def test_with_ray_its_ports_are_open_too_and_one_tool_is_enough(tmp_path: Path) -> None:
    assert firewall_lines(loaded(tmp_path), ("ufw",)) == {
        "gpu-01": "# gpu-01: ufw\n"
        "ufw allow proto tcp from 10.0.0.2 to any port 6379,8001:8004,8100:8199,8265,10001,"
        "10010:10016,20000:20999,52365 comment vllmdeploy\n"
        "ufw allow proto tcp from any to any port 8000 comment vllmdeploy",
        "gpu-02": "# gpu-02: ufw\n"
        "ufw allow proto tcp from 10.0.0.1 to any port 8001:8004,8100:8199,10010:10014,"
        "20000:20999,52365 comment vllmdeploy",
    }


def test_ipv6_sources_get_lines_of_their_own_family(tmp_path: Path) -> None:
    nodes = "gpu-01 ip=fd00::1 head=yes\ngpu-02 ip=fd00::2\n"
    text = firewall_lines(loaded(tmp_path, nodes=nodes, EXECUTOR="mp"), ("iptables", "nft"))
    assert "ip6tables -I INPUT -s fd00::1 -p tcp --dport 8100:8199" in text["gpu-02"]
    assert "ip6 saddr fd00::1 tcp dport" in text["gpu-02"]


def test_a_firewall_needs_addresses_and_a_tool_that_exists(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gpu-02 has none"):
        firewall_lines(loaded(tmp_path, nodes="10.0.0.1 head=yes\ngpu-02\n"), ())
    with pytest.raises(UsageError, match="it is one of ufw, firewalld, nft, iptables"):
        firewall_lines(loaded(tmp_path), ("pf",))
