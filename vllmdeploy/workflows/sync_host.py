"""What is done on a host before its first piece of a model comes, and after its last."""

from __future__ import annotations

from dataclasses import dataclass

from vllmdeploy.core.command import Command, Result, check
from vllmdeploy.core.fact import Fact
from vllmdeploy.effects.ask import ask_one
from vllmdeploy.effects.transfer_freight import Freight, Party
from vllmdeploy.effects.transfer_hosts import Prepared
from vllmdeploy.errors import PreflightRefused
from vllmdeploy.plan.transfer_pieces import Piece, held
from vllmdeploy.plan.transfer_standing import Stand, Standing, stand
from vllmdeploy.tools import model_files, ranges, rsync
from vllmdeploy.tools.model_files_found import FoundStore


@dataclass(frozen=True, slots=True)
class HostWork:
    """The two ends of a host's part in one distribution."""

    freight: Freight
    pieces: tuple[Piece, ...]

    def prepare(self, party: Party) -> Prepared:
        """Looks anew: since the plan, and since an earlier try, the host may have changed."""
        place, manifest = self.freight.place, self.freight.manifest
        found = stand(_ask(party, model_files.look(place.root, place.name)), manifest, place.name)
        match found.standing:
            case Standing.READY:
                return Prepared(whole=True, there=manifest.total)
            case Standing.REFUSED:
                raise refusal(party.name, found)
            case Standing.BY_HAND:
                return self._taken_over(party)
            case Standing.UNFINISHED:
                _run(party, model_files.reopen(place), "opening an unfinished copy again")
            case Standing.PARTIAL | Standing.ABSENT:
                pass
        _run(party, model_files.begin(place, manifest.total), "making the incoming folder")
        _run(party, rsync.sweep(place), "sweeping what another run left")
        return self.looked_through(party)

    def finish(self, party: Party) -> None:
        """Everything is on the disk before the name, and the name before READY."""
        place, manifest = self.freight.place, self.freight.manifest
        _run(party, model_files.publish(place, manifest), "giving the model its name")
        _run(party, model_files.mark_ready(place, manifest), "marking the model ready")

    def _taken_over(self, party: Party) -> Prepared:
        place, manifest = self.freight.place, self.freight.manifest
        paths = tuple(manifest.by_path)
        hashes = self._hashes(party, place.folder, paths, manifest.total)
        wrong = [path for path in paths if hashes.get(path) != manifest.by_path[path].sha256]
        if wrong:
            text = f"{party.name}: {place.folder} was put there by hand, and {wrong[0]} differs"
            raise PreflightRefused([text], hint="move it away, or remove it there")
        _run(party, model_files.write_manifest(place, manifest), "writing the manifest")
        _run(party, model_files.mark_ready(place, manifest), "marking the model ready")
        return Prepared(whole=True, there=manifest.total)

    def looked_through(self, party: Party) -> Prepared:
        """Only what has the right hash counts: a crash may have left holes under a right size."""
        place, manifest = self.freight.place, self.freight.manifest
        store = _ask(party, model_files.look(place.root, place.name))
        incoming = store.incoming(place.name)
        sizes = incoming.tree.sizes if incoming else {}
        wanted = manifest.by_path
        came = dict(incoming.came) if incoming else {}
        whole = {piece.paths[0]: piece.number for piece in self.pieces if piece.in_ranges}
        left = [path for path in came if path not in whole or path in sizes]
        foreign = [path for path in sizes if path not in wanted] + ranges.leftovers(left)
        if foreign:
            discard = model_files.discard(place.incoming, foreign)
            _run(party, discard, "removing what is not in the manifest")
        full = [
            path for path, size in sizes.items() if path in wanted and size == wanted[path].size
        ]
        hashes = self._hashes(party, place.incoming, full, sum(sizes.values())) if full else {}
        good = {path for path in full if hashes.get(path) == wanted[path].sha256}
        there = sum(min(size, wanted[path].size) for path, size in sizes.items() if path in wanted)
        growing = {path: came[path] for path in came if path not in left}
        there += sum(end - begin for found in growing.values() for begin, end in found)
        files = frozenset(whole[path] for path in sizes if path in whole and path not in good)
        return Prepared(has=held(self.pieces, good, growing), files=files, there=there)

    def _hashes(
        self, party: Party, folder: str, paths: list[str] | tuple[str, ...], total: int
    ) -> dict[str, str]:
        said = _run(
            party, model_files.hashes(folder, paths, total=total), "verifying what is there"
        )
        found = (model_files.parse_hash(line) for line in said.stdout.splitlines())
        return dict(each for each in found if each is not None)


def refusal(name: str, found: Stand) -> PreflightRefused:
    return PreflightRefused([f"{name}: {found.why}"], hint=found.hint)


def _ask(party: Party, fact: Fact[FoundStore]) -> FoundStore:
    return ask_one(party.shell, fact, party.member.access)


def _run(party: Party, command: Command, doing: str) -> Result:
    mine = party.member.access.of(command)
    return check(party.name, mine, party.shell.run(mine), doing=doing)
