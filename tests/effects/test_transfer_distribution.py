"""A distribution among fake hosts: who ends up with the model, and what is said of the others."""

from __future__ import annotations

import re
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from vllmdeploy.core.command import Command, Result
from vllmdeploy.core.host import Host
from vllmdeploy.core.layout import Layout
from vllmdeploy.effects.execute import Stop
from vllmdeploy.effects.shell import Feed, Inbox, OnLine, Take
from vllmdeploy.effects.transfer import Distribution
from vllmdeploy.effects.transfer_events import Again, HostDone, HostFailed, Joined, SyncEvent
from vllmdeploy.effects.transfer_freight import Freight, Party
from vllmdeploy.effects.transfer_hosts import Prepared, Work
from vllmdeploy.errors import HostUnreachable, NotHealthy
from vllmdeploy.plan.transfer_keys import Member
from vllmdeploy.plan.transfer_pieces import pieces_of, with_ranges
from vllmdeploy.tools.access import Access
from vllmdeploy.tools.manifest import Manifest, ModelFile
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.rsync import Road
from vllmdeploy.tools.sync_keys import Peering

MiB = 1024 * 1024
GOOD, BAD = "a" * 64, "b" * 64
MANIFEST = Manifest(
    source="folder",
    repo="",
    files=tuple(ModelFile(f"f{n}", 40 * MiB, GOOD) for n in range(4)),
)
PLACE = ModelPlace("/models", "M")
PEERING = Peering(user="u", rsync="rsync  version 3.2.7", ssh=True, host_keys=("ssh-ed25519 A",))

Answer = Callable[[str, str, bool], Result]


def good(source: str, path: str, checksum: bool) -> Result:
    del source, checksum
    return Result(0, f"   41943040 100%  1.0MB/s 0:00:00\nmoved\n{GOOD}  {path}\n")


@dataclass
class Fetching:
    """A host that answers every pull by a rule."""

    host: str
    answer: Answer = good
    pulls: list[str] = field(default_factory=list[str])
    ranges: list[str] = field(default_factory=list[str])
    lanes: list[str] = field(default_factory=list[str])
    together: list[str] = field(default_factory=list[str])
    hashes: dict[str, str] = field(default_factory=dict[str, str])
    trouble: dict[str, Result] = field(default_factory=dict[str, Result])

    def run(self, command: Command, *, on_line: OnLine | None = None) -> Result:
        if "growing" in command.argv[2]:
            self.together.append(command.argv[-1])
            return Result(0, f"{self.hashes.pop(command.argv[-1], GOOD)}  ./{command.argv[-1]}\n")
        found = re.search(r"10\.0\.0\.(\d):M/", str(command))
        assert found is not None, f"unexpected command: {command}"
        path = (command.stdin or b"").decode().strip()
        self.pulls.append(f"{path} from h{found[1]}")
        result = self.answer(f"h{found[1]}", path, "--checksum" in command.argv)
        for line in result.stdout.splitlines():
            if on_line is not None:
                on_line(line)
        return result

    def stream(
        self, command: Command, *, take: Take | None = None, feed: Feed | None = None
    ) -> Result:
        assert isinstance(feed, Inbox)
        assert take is not None
        assert command.argv[-1] == "M", f"unexpected stream: {command}"
        source = f"h{command.argv[-2][-1]}"
        self.lanes.append(source)
        while True:
            select.select([feed], [], [])
            while (line := feed()) is not None:
                if not line:
                    return Result(0)
                number, start, end, path = line.decode().rstrip("\n").split(" ", 3)
                self.ranges.append(f"{path} {int(start) // MiB} {int(end) // MiB}")
                if source in self.trouble:
                    return self.trouble[source]
                take(f"came {int(end) - int(start)}\nwhole {number}\n".encode())

    def close(self) -> None:
        """Nothing is held."""


def party(number: int, answer: Answer = good) -> Party:
    name = f"h{number}"
    member = Member(
        host=Host(name=name, address=name),
        access=Access(Layout("/state/vllm"), "u", 0, False, False),
        peering=PEERING,
        road=Road(ip=f"10.0.0.{number}", user="u"),
    )
    return Party(member=member, shell=Fetching(name, answer))


@dataclass
class Scene:
    """What was prepared, finished and said."""

    finished: list[str] = field(default_factory=list[str])
    events: list[SyncEvent] = field(default_factory=list[SyncEvent])
    prepared: Callable[[Party], Prepared] = lambda party: Prepared()
    finish_error: NotHealthy | None = None
    on_finish: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    in_ranges: bool = False

    def run(self, sources: list[Party], targets: list[Party]) -> dict[str, str]:
        def finish(party: Party) -> None:
            if self.finish_error:
                raise self.finish_error
            self.finished.append(party.name)
            self.on_finish()

        distribution = Distribution(
            pieces=with_ranges(pieces_of(MANIFEST)) if self.in_ranges else pieces_of(MANIFEST),
            freight=Freight(place=PLACE, manifest=MANIFEST),
            work=Work(prepare=self.prepared, finish=finish),
            on_event=self.events.append,
            stop=Stop.new(),
            clock=self.clock,
        )
        failed = distribution.run(sources, targets)
        return {name: error.message for name, error in failed.items()}

    def told(self, kind: type[SyncEvent]) -> list[SyncEvent]:
        return [event for event in self.events if isinstance(event, kind)]


def test_every_target_gets_every_piece_and_is_finished_once() -> None:
    scene, targets = Scene(), [party(2), party(3)]
    assert scene.run([party(1)], targets) == {}
    assert sorted(scene.finished) == ["h2", "h3"]
    for target in targets:
        assert isinstance(target.shell, Fetching)
        assert sorted(pull.split()[0] for pull in target.shell.pulls) == ["f0", "f1", "f2", "f3"]
    assert len(scene.told(HostDone)) == 2


def test_the_first_prepared_host_does_not_get_the_source_for_itself() -> None:
    prepared = threading.Event()
    joined: list[str] = []

    def in_turn(party: Party) -> Prepared:
        if party.name == "h3":
            prepared.wait()
        joined.append(party.name)
        return Prepared()

    def says_who_is_there(source: str, path: str, checksum: bool) -> Result:
        assert joined == ["h2", "h3"]
        return good(source, path, checksum)

    scene = Scene(prepared=in_turn, clock=lambda: 0.0)  # a moment that never ends
    scene.events = Starting(prepared)
    assert scene.run([party(1)], [party(2, says_who_is_there), party(3, says_who_is_there)]) == {}


class Starting(list[SyncEvent]):
    """Lets the second host get ready once the first has joined."""

    def __init__(self, prepared: threading.Event) -> None:
        super().__init__()
        self._prepared = prepared

    def append(self, event: SyncEvent) -> None:
        super().append(event)
        if isinstance(event, Joined):
            self._prepared.set()


def test_a_host_that_takes_long_to_prepare_is_not_waited_for() -> None:
    finished = threading.Event()

    def in_turn(party: Party) -> Prepared:
        if party.name == "h3":
            finished.wait()
        return Prepared()

    scene = Scene(prepared=in_turn)
    scene.on_finish = finished.set
    assert scene.run([party(1)], [party(2), party(3)]) == {}
    assert scene.finished == ["h2", "h3"]


def test_only_what_is_missing_comes() -> None:
    scene, target = Scene(prepared=lambda _: Prepared(has=frozenset({0, 2}), there=1)), party(2)
    assert scene.run([party(1)], [target]) == {}
    assert isinstance(target.shell, Fetching)
    assert sorted(target.shell.pulls) == ["f1 from h1", "f3 from h1"]


def test_a_host_that_turns_out_to_have_it_is_a_source_and_gets_nothing() -> None:
    scene, target = Scene(prepared=lambda _: Prepared(whole=True)), party(2)
    assert scene.run([party(1)], [target]) == {}
    assert isinstance(target.shell, Fetching)
    assert (target.shell.pulls, scene.finished) == ([], [])


def test_a_wrong_hash_is_compared_as_a_whole_once_more() -> None:
    def wrong_at_first(source: str, path: str, checksum: bool) -> Result:
        if path == "f1" and not checksum:
            return Result(0, f"moved\n{BAD}  f1\n")
        return good(source, path, checksum)

    scene = Scene()
    assert scene.run([party(1)], [party(2, wrong_at_first)]) == {}
    assert scene.told(Again) == [Again("h2", "f1 from h1 is not what the manifest says")]
    assert scene.finished == ["h2"]


def test_a_source_that_stays_wrong_marks_nothing_ready() -> None:
    def always_wrong(source: str, path: str, checksum: bool) -> Result:
        if path == "f1":
            return Result(0, f"moved\n{BAD}  f1\n")
        return good(source, path, checksum)

    scene = Scene()
    failed = scene.run([party(1)], [party(2, always_wrong)])
    assert failed == {"h2": "h2: no host has f1 as the manifest says"}
    assert scene.finished == []


def test_a_full_disk_fails_its_host_at_once_and_the_others_finish() -> None:
    def full(source: str, path: str, checksum: bool) -> Result:
        said = "rsync: write failed on f0: No space left on device (28)\nrsync error: (code 11)\n"
        return Result(11, stderr=said)

    scene = Scene()
    failed = scene.run([party(1)], [party(2, full), party(3)])
    assert failed.keys() == {"h2"}
    assert re.fullmatch(
        r"h2: fetching f\d from h1: exit 11: rsync\n  rsync: write failed .*No space left.*",
        failed["h2"],
    )
    assert scene.finished == ["h3"]
    assert [event.host for event in scene.events if isinstance(event, HostFailed)] == ["h2"]


def test_what_cannot_be_prepared_or_finished_is_told_of_its_host_only() -> None:
    def prepared(party: Party) -> Prepared:
        if party.name == "h2":
            raise NotHealthy("h2: in the way")
        return Prepared()

    scene = Scene(prepared=prepared)
    assert scene.run([party(1)], [party(2), party(3)]) == {"h2": "h2: in the way"}
    assert scene.finished == ["h3"]
    scene = Scene(finish_error=NotHealthy("no rename"))
    assert scene.run([party(1)], [party(2)]) == {"h2": "no rename"}


def test_a_source_that_cannot_be_read_from_is_replaced_by_another() -> None:
    def not_from_h1(source: str, path: str, checksum: bool) -> Result:
        if source == "h1":
            said = "ssh: connect to host 10.0.0.1 port 22: Connection refused\nrsync error: 255\n"
            return Result(255, stderr=said)
        return good(source, path, checksum)

    scene = Scene()
    assert scene.run([party(1), party(4)], [party(2, not_from_h1)]) == {}
    assert scene.finished == ["h2"]


def test_a_host_that_comes_back_goes_on() -> None:
    tries: list[str] = []

    def unreachable_once(source: str, path: str, checksum: bool) -> Result:
        tries.append(path)
        if len(tries) == 1:
            raise HostUnreachable("h2", "the conversation broke off")
        return good(source, path, checksum)

    scene = Scene()
    assert scene.run([party(1)], [party(2, unreachable_once)]) == {}
    assert scene.finished == ["h2"]


# Files in ranges


def fetching(one: Party) -> Fetching:
    assert isinstance(one.shell, Fetching)
    return one.shell


def test_a_big_file_comes_in_ranges_and_is_put_together_once() -> None:
    scene, targets = Scene(in_ranges=True), [party(2), party(3)]
    assert scene.run([party(1)], targets) == {}
    assert sorted(scene.finished) == ["h2", "h3"]
    for target in targets:
        shell = fetching(target)
        assert sorted(shell.together) == ["f0", "f1", "f2", "f3"]
        assert len(shell.ranges) == len(set(shell.ranges)) == 20
        # Range after range of one source comes in one conversation.
        assert len(shell.lanes) <= 4
        assert shell.pulls == []


def test_a_file_that_was_put_together_wrong_is_compared_with_a_whole_one() -> None:
    scene, target = Scene(in_ranges=True), party(2)
    fetching(target).hashes["f1"] = BAD
    assert scene.run([party(1)], [target]) == {}
    assert fetching(target).pulls == ["f1 from h1"]
    assert scene.told(Again) == [Again("h2", "f1 is not what the manifest says")]
    assert scene.finished == ["h2"]


def test_a_whole_file_that_is_no_better_marks_nothing_ready() -> None:
    def compared(source: str, path: str, checksum: bool) -> Result:
        assert checksum
        return Result(0, f"moved\n{BAD}  {path}\n")

    scene, target = Scene(in_ranges=True), party(2, compared)
    fetching(target).hashes["f1"] = BAD
    assert scene.run([party(1)], [target]) == {"h2": "h2: no host has f1 as the manifest says"}
    assert scene.finished == []


def test_a_source_whose_file_is_shorter_is_not_asked_for_it_again() -> None:
    short = Result(1, stderr="vllmdeploy: refused: f0 is shorter than that\n")
    scene, target = Scene(in_ranges=True), party(2)
    fetching(target).trouble["h1"] = short
    assert scene.run([party(1), party(4)], [target]) == {}
    alone = party(2)
    fetching(alone).trouble["h1"] = short
    [message] = Scene(in_ranges=True).run([party(1)], [alone]).values()
    assert "is shorter than that" in message


def test_a_full_disk_ends_a_host_whose_files_come_in_ranges_too() -> None:
    scene, full = Scene(in_ranges=True), party(2)
    said = "dd: error writing 'f0': No space left on device\n"
    fetching(full).trouble["h1"] = fetching(full).trouble["h3"] = Result(1, stderr=said)
    failed = scene.run([party(1)], [full, party(3)])
    assert failed.keys() == {"h2"}
    assert re.fullmatch(
        r"h2: fetching a part of f\d from h\d: exit 1: dd\n  dd: error writing .*No space left.*",
        failed["h2"],
    )
    assert scene.finished == ["h3"]
