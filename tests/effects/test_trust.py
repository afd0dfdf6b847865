"""Getting to know hosts that stand behind a jump host, one wave after the other."""

from __future__ import annotations

from pathlib import Path

from tests.support.sshd import require_sshd, sshd
from vllmdeploy.core.host import Host
from vllmdeploy.effects.connect import connect
from vllmdeploy.effects.trust import Introduced, forget, introduce, record, recorded_names, waves


def test_a_jump_host_is_met_first_and_then_what_lies_behind_it(tmp_path: Path) -> None:
    require_sshd()
    with sshd(tmp_path / "jump") as jump, sshd(tmp_path / "inner") as inner:
        config = tmp_path / "config"
        config.write_text(
            f"Host bastion\n  HostName 127.0.0.1\n  Port {jump.port}\n"
            f"  IdentityFile {jump.key}\n"
            f"Host gpu-1\n  HostName 127.0.0.1\n  Port {inner.port}\n"
            f"  IdentityFile {inner.key}\n  ProxyJump root@bastion\n"
            "Host odd\n  ProxyCommand nc %h %p\n",
            "utf-8",
        )
        ours = tmp_path / "ours"
        settings = inner.settings(known_hosts=ours, config=config, key=None, user="root")
        hosts = [Host(name=name, address=name) for name in ("gpu-1", "odd")]
        to_ask, failures = waves(hosts, settings)
        assert [[name for name, _ in wave] for wave in to_ask] == [["bastion"], ["gpu-1"]]
        assert [error.host for error in failures] == ["odd"]
        for wave in to_ask:
            found = [each for each in introduce(wave, settings) if isinstance(each, Introduced)]
            assert len(found) == 1
            record(ours, found)
        with connect(hosts[:1], settings) as connected:
            assert list(connected.shells) == ["gpu-1"]
        assert ours.read_text("utf-8") == (
            f"[127.0.0.1]:{jump.port} {jump.host_key()}\n"
            f"[127.0.0.1]:{inner.port} {inner.host_key()}\n"
        )
        assert forget(ours, recorded_names("bastion", hosts, settings)) == 1
        assert forget(ours, recorded_names("gpu-1", hosts, settings)) == 1
        assert ours.read_text("utf-8") == ""
