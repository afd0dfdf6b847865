"""`model sync` between real hosts: real sshd, real rsync, one host that has none, slow wires."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.rig import model_store, network
from tests.rig import rig as rigs
from tests.rig.disk import Profile
from tests.rig.host import Host
from tests.rig.model_store import MiB
from tests.rig.programs import until
from tests.rig.rig import Rig

# Slow enough for a copy to be caught half way.
WIRE = network.Nic(rate="200mbit", speed_mbit=200)
FLEET = (
    Profile(name="head", nics=(WIRE,), engine=False),
    Profile(name="sudoer", user="deploy", nics=(WIRE,), engine=False),
    Profile(name="plain", nics=(WIRE,), engine=False),
    Profile(name="bare", nics=(WIRE,), engine=False, without=("rsync",)),
)


@pytest.fixture(scope="module")
def rig() -> Generator[Rig]:
    fleet = rigs.start(FLEET)
    yield fleet
    fleet.remove()


@pytest.fixture
def folder(rig: Rig, tmp_path: Path) -> Path:
    rig.write_config(tmp_path, MODEL_PATH=model_store.ROOT)
    return tmp_path


def received(host: Host) -> int:
    """Bytes that came in over the wire since it was plugged in."""
    return int(host.sh("cat /sys/class/net/eth0/statistics/rx_bytes").stdout)


def pair(folder: Path, rig: Rig, *hosts: Host) -> None:
    """Only these take part."""
    rig.write_config(folder, hosts=(rig.head, *hosts), MODEL_PATH=model_store.ROOT)


def half_there(host: Host, name: str, total: int) -> None:
    until("half of it is there", lambda: model_store.came(host, name) >= total / 2, limit_s=60)


def test_every_host_gets_the_model_and_a_second_sync_moves_nothing(rig: Rig, folder: Path) -> None:
    manifest = model_store.put(rig.head, "Model", model_store.shards(8, 2 * MiB))
    first = model_store.sync(rig, folder, "Model")
    assert first["status"] == 0, first["said"]
    assert sorted(first["done"]) == sorted(host.ip for host in rig.workers)
    for host in rig.hosts:
        assert model_store.is_whole(host, "Model", manifest), host.name
        assert model_store.leftovers(host) == []
    again = model_store.sync(rig, folder, "Model")
    assert (again["status"], again["done"], again["received_bytes"]) == (0, [], 0)
    lines = rig.head.sh("cat /var/lib/vllmdeploy/vllm/audit.log").stdout.splitlines()
    [line] = [line for line in map(json.loads, lines) if line["what"] == "model sync Model"]
    assert (line["done"], line["failed"]) == (len(rig.workers), 0)


def test_dry_run_touches_nothing(rig: Rig, folder: Path) -> None:
    model_store.put(rig.head, "Dry", {"config.json": b"{}"})
    before = {host.name: host.disk.files() for host in rig.hosts}
    shown = rig.vllmdeploy("model", "sync", "Dry", "--dry-run", folder=folder)
    assert f"# {rig['plain'].ip}: receive model Dry (absent)" in shown.stdout
    assert "--append-verify" in shown.stdout
    assert {host.name: host.disk.files() for host in rig.hosts} == before


@pytest.mark.long
def test_nobody_to_ask_means_nothing_is_done(rig: Rig, folder: Path) -> None:
    model_store.put(rig.head, "Asked", {"config.json": b"{}"})
    declined = rig.vllmdeploy("model", "sync", "Asked", folder=folder)
    assert declined.returncode == 2
    assert not model_store.on_disk(rig["plain"], "Asked").exists()


def test_the_key_reads_models_and_does_nothing_else(rig: Rig, folder: Path) -> None:
    model_store.put(rig.head, "Keyed", {"config.json": b"{}"})
    assert model_store.sync(rig, folder, "Keyed")["status"] == 0
    secrets = "/var/lib/vllmdeploy/vllm/secrets/sync"
    ssh = (
        f"ssh -F /dev/null -i {secrets}/id_ed25519 -o BatchMode=yes -o HostKeyAlias={rig.head.ip} "
        f"-o UserKnownHostsFile={secrets}/known_hosts root@{rig.head.ip}"
    )
    host = rig["plain"]
    assert host.sh(f"stat -c %a {secrets}/id_ed25519").stdout == "600\n"
    for attempt in (
        "id",
        "rsync --server -e.LsfxCIvu . Keyed/",
        "rsync --server --sender -e.LsfxCIvu . /etc/",
        "rsync --server --sender -e.LsfxCIvu . ../../etc/",
        "rsync --server --sender -se.LsfxCIvu . Keyed/",
        "rsync --server --sender -e.LsfxCIvu --log-file=/tmp/x . Keyed/",
        "rsync --server --sender -e.LsfxCIvu --files-from=/etc/shadow . Keyed/",
        "rsync --server --sender -e.LsfxCIvu . Keyed/ /etc",
        "rsync --server --sender '-e.$(touch /tmp/x)' . Keyed/",
    ):
        said = host.sh(f'{ssh} "$1" 2>&1; echo "status $?"', attempt)
        assert "vllmdeploy: refused" in said.stdout, attempt
        assert "status 1" in said.stdout, attempt
    tunnel = host.sh(f"timeout 5 {ssh} -N -L 7777:127.0.0.1:22 2>&1; echo $?").stdout
    assert "refused" in tunnel or tunnel.strip() != "0"


def test_down_takes_the_key_away(rig: Rig, folder: Path) -> None:
    model_store.put(rig.head, "Gone", {"config.json": b"{}"})
    assert model_store.sync(rig, folder, "Gone")["status"] == 0
    authorized = {host.name: authorized_keys(host) for host in rig.hosts}
    assert ["vllmdeploy:vllm" in authorized[h.name] for h in rig.hosts] == [True, True, True, False]
    down = rig.vllmdeploy("down", "--yes", folder=folder, env={"VLLMDEPLOY_RUNTIME": "process"})
    assert down.returncode == 0, down.stderr
    for host in rig.hosts:
        kept = [line for line in authorized[host.name].splitlines() if "vllmdeploy:" not in line]
        assert authorized_keys(host).splitlines() == kept
        assert not host.sh("ls /var/lib/vllmdeploy/vllm/secrets/sync", check=False).ok
        assert not host.sh("ls /var/lib/vllmdeploy/vllm/ssh", check=False).ok


def authorized_keys(host: Host) -> str:
    return host.sh(f"cat {host.profile.home}/.ssh/authorized_keys").stdout


@pytest.mark.parametrize("victim", [pytest.param("sender", marks=pytest.mark.long), "receiver"])
@pytest.mark.parametrize("signal", ["KILL", pytest.param("TERM", marks=pytest.mark.long)])
@pytest.mark.parametrize("targets", [1, 2], ids=["whole", "ranges"])
def test_a_copy_killed_half_way_goes_on_from_there(
    rig: Rig, folder: Path, victim: str, signal: str, targets: int
) -> None:
    """To one host whole files go, to several ranges; of those the last second is lost, of three on
    their way, which is a twentieth of this model at the most."""
    host, name = rig["plain"], f"Killed-{victim}-{signal}-{targets}"
    size = (48 * MiB, 512 * MiB)[targets - 1]
    manifest = model_store.put(rig.head, name, model_store.shards(1, size))
    pair(folder, rig, *(host, rig["sudoer"])[:targets])
    began = received(host)

    killed = {"sender": rig.head, "receiver": host}[victim]
    with background(rig, folder, name):
        half_there(host, name, manifest.total)
        model_store.kill_copies(killed, signal)
    assert not model_store.is_whole(host, name, manifest)
    at_the_kill = received(host) - began
    done = model_store.sync(rig, folder, name)
    assert done["status"] == 0, done["said"]
    assert model_store.is_whole(host, name, manifest)
    assert model_store.leftovers(host) == []
    resent = received(host) - began - at_the_kill
    assert resent / manifest.total <= 0.55


def test_what_went_bad_while_it_grew_is_found_and_only_that_comes_again(
    rig: Rig, folder: Path
) -> None:
    host, name = rig["plain"], "Grown"
    manifest = model_store.put(rig.head, name, model_store.shards(1, 64 * MiB))
    pair(folder, rig, host, rig["sudoer"])
    began = received(host)
    with background(rig, folder, name):
        half_there(host, name, manifest.total)
    until("the copy has ended", lambda: not host.sh("pgrep -x dd", check=False).ok, limit_s=30)
    incoming = model_store.on_disk(host, f".incoming/{name}")
    grown = incoming / ".vllmdeploy/growing/model-00000.safetensors"
    with grown.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    done = model_store.sync(rig, folder, name)
    assert done["status"] == 0, done["said"]
    assert "model-00000.safetensors is not what the manifest says" in done["said"]
    assert model_store.is_whole(host, name, manifest)
    assert model_store.leftovers(host) == []
    assert received(host) - began < 1.3 * manifest.total


@contextmanager
def background(rig: Rig, folder: Path, name: str) -> Generator[None]:
    """A sync while the body runs; then it is killed as by a power cut."""
    said = folder / "said"
    with (
        said.open("wb") as log,
        subprocess.Popen(
            (str(Path(sys.prefix, "bin/vllmdeploy")), "model", "sync", name, "--yes"),
            cwd=folder,
            env=rig.operator_environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process,
    ):
        try:
            yield
        finally:
            process.kill()
            sys.stdout.write(said.read_text())


def test_a_flipped_bit_is_found_and_only_that_file_comes_again(rig: Rig, folder: Path) -> None:
    host = rig["plain"]
    manifest = model_store.put(rig.head, "Flipped", model_store.shards(8, 2 * MiB))
    pair(folder, rig, host)
    assert model_store.sync(rig, folder, "Flipped")["status"] == 0
    shard = model_store.on_disk(host, "Flipped/model-00003.safetensors")
    before = shard.stat()
    content = bytearray(shard.read_bytes())
    content[MiB] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))

    found = rig.vllmdeploy("model", "verify", "Flipped", "--deep", folder=folder)
    assert found.returncode == 4
    assert "model-00003.safetensors" in found.stdout + found.stderr
    began = received(host)
    mended = rig.vllmdeploy("model", "verify", "Flipped", "--repair", "--yes", folder=folder)
    assert mended.returncode == 0, mended.stderr
    assert f"{host.ip}: ready" in mended.stdout
    assert model_store.is_whole(host, "Flipped", manifest)
    assert received(host) - began < 3 * MiB


def test_through_control_no_host_needs_to_reach_another(rig: Rig, folder: Path) -> None:
    files = {**model_store.shards(3, 2 * MiB), "one.safetensors": os.urandom(36 * MiB + 1)}
    manifest = model_store.put(rig.head, "Relayed", files)
    for host in rig.workers:
        host.sh("rm -rf /var/lib/vllmdeploy")
    done = model_store.sync(rig, folder, "Relayed", "--through-control")
    assert done["status"] == 0, done["said"]
    for host in rig.workers:
        assert model_store.is_whole(host, "Relayed", manifest), host.name
        assert not host.sh("ls /var/lib/vllmdeploy/vllm/secrets", check=False).ok


@pytest.mark.parametrize("size", [2 * MiB, 36 * MiB])
def test_a_source_that_is_not_what_its_manifest_says_marks_nothing_ready(
    rig: Rig, folder: Path, size: int
) -> None:
    host, name = rig["plain"], f"Changed-{size}"
    model_store.put(rig.head, name, model_store.shards(2, size))
    shard = model_store.on_disk(rig.head, f"{name}/model-00000.safetensors")
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    pair(folder, rig, host)
    failed = model_store.sync(rig, folder, name)
    assert failed["status"] == 4
    assert "no host has model-00000.safetensors as the manifest says" in failed["said"]
    assert not model_store.on_disk(host, name).exists()


@pytest.mark.long
def test_a_full_disk_is_refused_and_the_others_finish(rig: Rig, folder: Path) -> None:
    full = rig["plain"]
    manifest = model_store.put(rig.head, "Large", model_store.shards(2, 4 * MiB))
    model_store.on_disk(full).mkdir(parents=True, exist_ok=True)
    full.sh(f"mount -t tmpfs -o size=32m none {model_store.ROOT}")
    try:
        refused = model_store.sync(rig, folder, "Large")
    finally:
        full.sh(f"umount {model_store.ROOT}")
    assert refused["status"] == 6
    assert "8.0 MiB are to come" in refused["said"]
    assert model_store.is_whole(rig["sudoer"], "Large", manifest)
    assert not model_store.on_disk(full, "Large").exists()


@pytest.mark.long
def test_five_thousand_small_files_need_no_round_trip_each(rig: Rig, folder: Path) -> None:
    host = rig["plain"]
    files = {f"part-{n // 100}/{n:05}.json": b"%d" % n for n in range(5000)}
    manifest = model_store.put(rig.head, "Small", files)
    pair(folder, rig, host)
    began = time.monotonic()
    done = model_store.sync(rig, folder, "Small")
    assert done["status"] == 0, done["said"]
    assert model_store.is_whole(host, "Small", manifest)
    # A round trip each, of half a millisecond and a process, would take longer than that.
    assert time.monotonic() - began < 60


def test_hosts_that_see_the_same_folder_get_it_once(rig: Rig, folder: Path) -> None:
    manifest = model_store.put(rig.head, "Shared", model_store.shards(4, 2 * MiB))
    one, other = rig["sudoer"], rig["plain"]
    with model_store.shared(one, other):
        done = model_store.sync(rig, folder, "Shared")
        assert done["status"] == 0, done["said"]
        assert done["shared"] in ({other.ip: one.ip}, {one.ip: other.ip})
        again = model_store.sync(rig, folder, "Shared")
        assert (again["status"], again["done"]) == (0, [])
    assert model_store.is_whole(one, "Shared", manifest)
    assert not model_store.on_disk(other, "Shared").exists()


def test_a_host_that_may_only_read_the_shared_folder_has_what_another_writes(
    rig: Rig, folder: Path
) -> None:
    owner, reader = rig["sudoer"], rig["plain"]
    manifest = model_store.put(rig.head, "Read", model_store.shards(2, MiB))
    with model_store.shared(owner, reader):
        reader.sh('mount -o remount,bind,ro "$1"', model_store.ROOT)
        done = model_store.sync(rig, folder, "Read")
        assert done["status"] == 0, done["said"]
        assert done["shared"] == {reader.ip: owner.ip}
        shown = rig.vllmdeploy("model", "verify", "Read", "--deep", folder=folder)
        assert f"{reader.ip}: ready" in shown.stdout, shown.stderr
    assert model_store.is_whole(owner, "Read", manifest)


@pytest.mark.long
def test_a_host_that_goes_silent_half_way_delays_nobody(rig: Rig, folder: Path) -> None:
    silent = rig["plain"]
    manifest = model_store.put(rig.head, "Silent", model_store.shards(8, 8 * MiB))
    with subprocess.Popen(
        (str(Path(sys.prefix, "bin/vllmdeploy")), "model", "sync", "Silent", "--yes"),
        cwd=folder,
        env=rig.operator_environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until("it has begun", lambda: model_store.came(silent, "Silent") > 0, limit_s=60)
        network.set_link(rig.number, silent.last, "eth0", up=False)
        try:
            assert process.stderr is not None
            said = process.stderr.read()
        finally:
            network.set_link(rig.number, silent.last, "eth0", up=True)
    assert process.returncode == 3, said
    assert said.index(f"{rig['sudoer'].ip}: Silent is ready") < said.index(f"{silent.ip}: failed")
    assert model_store.is_whole(rig["sudoer"], "Silent", manifest)
    assert model_store.is_whole(rig["bare"], "Silent", manifest)


@pytest.mark.long
def test_a_host_that_comes_up_while_others_are_served_gets_it_in_the_same_run(
    rig: Rig, folder: Path
) -> None:
    late, other = rig["plain"], rig["sudoer"]
    manifest = model_store.put(rig.head, "Late", model_store.shards(1, 48 * MiB))
    pair(folder, rig, other, late)
    late.stop_sshd()
    try:
        with subprocess.Popen(
            (str(Path(sys.prefix, "bin/vllmdeploy")), "model", "sync", "Late", "--yes"),
            cwd=folder,
            env=rig.operator_environment(),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            half_there(other, "Late", manifest.total)
            late.start_sshd()
            assert process.stderr is not None
            said = process.stderr.read()
    finally:
        if late.sh("pgrep -x sshd", check=False).stdout == "":
            late.start_sshd()
    assert process.returncode == 0, said
    assert f"asking once more: {late.ip}" in said
    assert model_store.is_whole(late, "Late", manifest)


def test_a_second_sync_of_a_model_waits_for_the_first(rig: Rig, folder: Path) -> None:
    host = rig["plain"]
    manifest = model_store.put(rig.head, "Twice", model_store.shards(2, 8 * MiB))
    pair(folder, rig, host)
    with ThreadPoolExecutor() as pool:
        both = list(pool.map(lambda _: model_store.sync(rig, folder, "Twice"), range(2)))
    assert [each["status"] for each in both] == [0, 0]
    assert sorted(each["done"] for each in both) == [[], [host.ip]]
    assert model_store.is_whole(host, "Twice", manifest)
