from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vllmdeploy.core.command import Result
from vllmdeploy.tools import systemd
from vllmdeploy.tools.systemd import Unit, UnitSpec

STATE = "/var/lib/vllmdeploy/vllm"
SPEC = UnitSpec(
    name="vllm-ray-head",
    argv=("/usr/bin/python3", "-m", "vllmdeploy.node.warden", "--name", "vllm-ray-head"),
    stop_s=30,
    labels={"vllmdeploy.cluster": "vllm", "vllmdeploy.fingerprint": "0123456789ab"},
    environment={"PYTHONPATH": f"{STATE}/pkg/0123/vllmdeploy.zip", "RAY_AUTH_MODE": "token"},
    writable=(STATE,),
    user="ray",
)

TEXT = """\
[Unit]
Description=vllmdeploy node vllm-ray-head
After=network-online.target
Wants=network-online.target
StartLimitIntervalSec=0

[Service]
Type=exec
ExecStart="/usr/bin/python3" "-m" "vllmdeploy.node.warden" "--name" "vllm-ray-head"
TimeoutStopSec=30
User=ray
Environment="PYTHONPATH=/var/lib/vllmdeploy/vllm/pkg/0123/vllmdeploy.zip"
Environment="RAY_AUTH_MODE=token"
Restart=always
RestartSec=1
OOMPolicy=continue
KillMode=mixed
TasksMax=infinity
LimitMEMLOCK=infinity
LimitNOFILE=1048576
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ProtectKernelTunables=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectHostname=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
RestrictSUIDSGID=yes
LockPersonality=yes
ReadWritePaths="/tmp" "/var/lib/vllmdeploy/vllm"

[Install]
WantedBy=multi-user.target

[X-Vllmdeploy]
vllmdeploy.cluster=vllm
vllmdeploy.fingerprint=0123456789ab
"""


def test_the_unit_of_a_node() -> None:
    assert systemd.text(SPEC) == TEXT


def test_an_engines_unit_has_less_to_call_on() -> None:
    confined = systemd.text(replace(SPEC, confined=True))
    before, after = TEXT.split("ReadWritePaths=")
    assert confined == f"{before}{systemd.CONFINEMENT}ReadWritePaths={after}"


def lines(argv: tuple[str, ...], **environment: str) -> list[str]:
    spec = UnitSpec(name="n", argv=argv, stop_s=1, environment=environment)
    wanted = ("ExecStart=", "Environment=")
    return [line for line in systemd.text(spec).splitlines() if line.startswith(wanted)]


def test_hostile_words_stay_words() -> None:
    assert lines(("/x", 'a "b" $HOME %n \\ ;', "$(id)"), V='%h "$X" \\') == [
        'ExecStart="/x" "a \\"b\\" $$HOME %%n \\\\ ;" "$$(id)"',
        'Environment="V=%%h \\"$X\\" \\\\"',
    ]


@pytest.mark.parametrize("hostile", ["a\nExecStart=/bin/evil", "a\0b", "tab\there", "\x7f"])
def test_control_characters_are_refused(hostile: str) -> None:
    for spec in (
        UnitSpec(name="n", argv=("/x", hostile), stop_s=1),
        UnitSpec(name="n", argv=("/x",), stop_s=1, environment={"V": hostile}),
        UnitSpec(name="n", argv=("/x",), stop_s=1, labels={"l": hostile}),
        UnitSpec(name="n", argv=("/x",), stop_s=1, user=hostile),
        UnitSpec(name=hostile, argv=("/x",), stop_s=1),
    ):
        with pytest.raises(ValueError, match="control characters"):
            systemd.text(spec)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze on PATH")
def test_systemd_itself_finds_nothing_wrong_with_it(tmp_path: Path) -> None:
    unit = tmp_path / systemd.unit_name(SPEC.name)
    unit.write_text(TEXT.replace("/usr/bin/python3", shutil.which("sh") or ""))
    done = subprocess.run(
        ("systemd-analyze", "verify", "--man=no", unit),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    ours = [line for line in done.stderr.splitlines() if "vllmdeploy" in line]
    assert (done.returncode, ours) == (0, [])


def test_install_writes_the_unit_and_starts_it_now_and_at_boot() -> None:
    command = systemd.make(SPEC)
    assert command.argv[3:] == (
        "sh",
        "/etc/systemd/system/vllmdeploy-vllm-ray-head.service",
        str(len(systemd.text(SPEC).encode())),
        "vllmdeploy-vllm-ray-head.service",
    )
    assert command.stdin == TEXT.encode()
    assert (command.root, command.limit_s) == (True, 90.0)


def test_the_plain_commands() -> None:
    unit = "vllmdeploy-vllm-ray-head.service"
    assert str(systemd.start("vllm-ray-head")) == f"systemctl start -- {unit}"
    assert str(systemd.restart("vllm-ray-head", stop_s=30)) == f"systemctl restart -- {unit}"
    assert str(systemd.logs("vllm-ray-head", tail=5, follow=True)) == (
        f"journalctl --unit {unit} --output cat --no-pager --lines 5 --follow"
    )
    assert systemd.remove("vllm-ray-head", stop_s=30).argv[4:] == (
        f"/etc/systemd/system/{unit}",
        unit,
    )


FAKE_SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> "$CALLS"
case $1 in
show) printf '%s\\n' MainPID=42 NRestarts=3 ActiveState=active SubState=running \\
  UnitFileState=enabled;;
reset-failed) exit 1;;
esac
"""


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """A PATH whose systemctl writes down what it is asked."""
    program = tmp_path / "systemctl"
    program.write_text(FAKE_SYSTEMCTL)
    program.chmod(0o755)
    return {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls")}


def run(argv: tuple[str, ...], env: dict[str, str], stdin: bytes | None = None) -> Result:
    done = subprocess.run(argv, input=stdin, env=env, capture_output=True, timeout=60, check=False)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def moved(argv: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    return tuple(word.replace(systemd.UNIT_FOLDER, str(folder)) for word in argv)


def test_a_unit_is_installed_found_with_its_labels_and_removed(
    tmp_path: Path, host: dict[str, str]
) -> None:
    (tmp_path / "units").mkdir()
    (tmp_path / "units" / "foreign.service").write_text("[Service]\n")
    folder = tmp_path / "units"
    made = systemd.make(SPEC)
    assert run(moved(made.argv, folder), host, made.stdin).status == 0
    fact = systemd.found(str(folder))
    assert fact.parse(run(fact.command.argv, host)) == (
        Unit(
            name="vllm-ray-head",
            active="active",
            sub="running",
            enabled=True,
            pid=42,
            restarts=3,
            labels=SPEC.labels,
        ),
    )
    removed = systemd.remove(SPEC.name, stop_s=30)
    assert run(moved(removed.argv, folder), host).status == 0
    assert sorted(path.name for path in folder.iterdir()) == ["foreign.service"]
    unit = systemd.unit_name(SPEC.name)
    assert Path(host["CALLS"]).read_text().splitlines() == [
        "daemon-reload",
        f"enable --quiet -- {unit}",
        f"restart -- {unit}",
        f"show --property=ActiveState,SubState,UnitFileState,MainPID,NRestarts -- {unit}",
        f"disable --now --quiet -- {unit}",
        "daemon-reload",
        f"reset-failed -- {unit}",
    ]


def test_a_host_without_systemd_has_no_units(tmp_path: Path) -> None:
    fact = systemd.found(str(tmp_path))
    assert fact.parse(Result(0)) == ()


def test_running_is_read_from_the_active_state() -> None:
    states = ("active", "reloading", "activating", "failed", "inactive", "")
    assert [Unit(name="n", active=state).running for state in states] == [True, True, *[False] * 4]
