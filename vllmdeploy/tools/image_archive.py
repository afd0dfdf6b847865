"""An image as pieces on a host: taken apart on one, put together and loaded on another.

`docker save` gives one long archive. Its layers are cut into pieces of equal size, kept by the
layers' own digests; the archive that the other host loads is made anew around those that it lacks.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.reading import fields, whole
from vllmdeploy.errors import last_line

BLOCK = 512
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_MEMBER = re.compile(r"[0-9a-f]{16}")


def folder_of(layer: str) -> str:
    """Where a layer's pieces are kept, below the image's own folder."""
    return layer.removeprefix("sha256:")[:32]


# Runs once for each file of the archive, as tar's own child. The sum of a layer that is not
# compressed is the layer's digest: what nobody lacks is not kept.
_TAKE = r"""
case $TAR_FILENAME in
  manifest.json) exec cat > work/manifest ;;
esac
name=$(printf %s "$TAR_FILENAME" | sha256sum | head -c 16)
printf '%s %s\n' "$name" "$TAR_FILENAME" >> work/members
mkdir "work/$name" || exit 1
[ -s work/spared ] || exec split -b "$piece" -a 5 -d - "work/$name/"
mkfifo "work/$name.sum" || exit 1
sha256sum < "work/$name.sum" > "work/$name.is" &
tee "work/$name.sum" | split -b "$piece" -a 5 -d - "work/$name/" || exit 1
wait
grep -qx "$(head -c 64 "work/$name.is")" work/spared && rm -rf "work/$name"
rm "work/$name.sum"
"""
# $1 the image's folder, $2 its id, $3 the size of a piece, $4 who is to own it, $5 the script for
# each file. What every target has is told on stdin.
_EXPORT = r"""
umask 022
[ ! -L "$1" ] && mkdir -p "$1" && cd -P -- "$1" && rm -rf work && mkdir work || exit 1
sort -u > work/spared
fail() { rm -rf work; exit 1; }
export piece="$3" take="$5"
: > work/members
# What comes after a pipe is what its status says: the other one's is written down. A tar that gives
# up leaves its child behind; the substitution ends when nobody is left who could write there.
unpacked=$({ docker save "$2" 2>work/said; echo $? > work/status; } |
  { tar -x --to-command='eval "$take"' -f -; echo $?; })
[ "$(cat work/status)" = 0 ] || { cat work/said >&2; fail; }
[ "$unpacked" = 0 ] || fail
config=$(sed -n 's/.*"Config": *"\([^"]*\)".*/\1/p' work/manifest | head -n 1)
name=$(printf %s "$config" | sha256sum | head -c 16)
[ -d "work/$name" ] || { echo "the archive has no $config" >&2; fail; }
printf 'manifest '; base64 < work/manifest | tr -d '\n'; echo
printf 'config '; cat "work/$name"/* | base64 | tr -d '\n'; echo
sed 's/^/member /' work/members
[ "$(id -u)" != 0 ] || chown -R "$4" .
"""


def export(
    folder: str, image_id: str, *, spared: Sequence[str], piece_bytes: int, owner: str
) -> Command:
    """Cut the image into pieces, in `work`; says what it found."""
    lines = "".join(f"{layer.removeprefix('sha256:')}\n" for layer in spared)
    arguments = (folder, image_id, str(piece_bytes), owner, _TAKE)
    return script(_EXPORT, *arguments, stdin=lines.encode(), root=True).within(4 * 3600)


@dataclass(frozen=True, slots=True)
class Exported:
    """What an archive said: the exact configuration, and under which name each layer was kept."""

    config: bytes = b""
    members: tuple[str, ...] = ()
    problem: str = ""

    @property
    def digest(self) -> str:
        """The image's identity, whatever store it was in."""
        return f"sha256:{hashlib.sha256(self.config).hexdigest()}"

    @property
    def layers(self) -> tuple[str, ...]:
        shown = fields(json.loads(self.config))
        listed = fields(shown.get("rootfs")).get("diff_ids")
        found = cast("list[object]", listed) if isinstance(listed, list) else []
        return tuple(str(one) for one in found)


def parse_export(result: Result) -> Exported:
    said: dict[str, list[str]] = {}
    for line in result.stdout.splitlines():
        word, _, rest = line.partition(" ")
        said.setdefault(word, []).append(rest)
    try:
        manifest = json.loads(base64.b64decode(said["manifest"][0]))
        config = base64.b64decode(said["config"][0])
        by_path = {path: name for name, _, path in (one.partition(" ") for one in said["member"])}
        members = tuple(by_path.get(path, "") for path in manifest[0]["Layers"])
        exported = Exported(config, members)
        layers = exported.layers
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return Exported(problem=f"its archive is not readable: {last_line(result.output)}")
    if len(layers) != len(members) or not all(map(_DIGEST.fullmatch, layers)):
        return Exported(problem="its archive does not tell which layers it has")
    return exported


# Every layer that is wanted gets its own folder; what an earlier run made is replaced.
_ARRANGE = r"""
cd -P -- "$1" || exit 1
while read -r name folder; do
  [ -d "work/$name" ] || continue
  rm -rf "$folder" && mv "work/$name" "$folder" || exit 1
done
rm -rf work
find . -type f -exec stat -c '%s %n' {} +
"""


def arrange(folder: str, exported: Exported, wanted: Sequence[str]) -> Command:
    """Says the size and path of every piece that is there now."""
    chosen: dict[str, str] = {}
    for layer, member in zip(exported.layers, exported.members, strict=True):
        # A layer that is there twice is a file once, and a link to it after that.
        chosen[layer] = chosen.get(layer) or member
    lines = "".join(
        f"{member} {folder_of(layer)}\n"
        for layer, member in chosen.items()
        if layer in wanted and _MEMBER.fullmatch(member)
    )
    return script(_ARRANGE, folder, stdin=lines.encode(), root=True).within(600)


def parse_pieces(result: Result) -> dict[str, int]:
    """Sizes by path."""
    found = (line.partition(" ./") for line in result.stdout.splitlines())
    sizes = {path: whole(size) for size, _, path in found}
    return {path: size for path, size in sizes.items() if size is not None}


def head_blocks(exported: Exported) -> bytes:
    """The archive's first files: what the image is made of, and how it runs."""
    config_name = f"{exported.digest.removeprefix('sha256:')}.json"
    names = [f"{layer.removeprefix('sha256:')}/layer.tar" for layer in exported.layers]
    manifest = json.dumps([{"Config": config_name, "RepoTags": None, "Layers": names}]).encode()
    return _file("manifest.json", manifest) + _file(config_name, exported.config)


def layer_head(layer: str, size: int) -> bytes:
    return _head(f"{layer.removeprefix('sha256:')}/layer.tar", size)


def _head(name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = size, 0o644
    return entry.tobuf(format=tarfile.GNU_FORMAT)


def _file(name: str, content: bytes) -> bytes:
    with io.BytesIO() as made:
        made.write(_head(name, len(content)))
        made.write(content)
        made.write(bytes(-len(content) % BLOCK))
        return made.getvalue()


# $1 the folder with the pieces, then the layers' folders in it. On stdin: the archive's first
# files, and the heading of every layer, a block each.
_LOAD = r"""
heads=$(mktemp) || exit 1
trap 'rm -f "$heads"' EXIT
cat > "$heads"
cd -P -- "$1" || exit 1
shift
at=$(($(wc -c < "$heads") / 512 - $#))
blocks() { dd if="$heads" bs=512 skip="$1" count="$2" 2>/dev/null; }
{ blocks 0 "$at"
  for layer; do
    blocks "$at" 1; at=$((at + 1))
    cat "$layer"/* || exit 1
    size=$(stat -c %s "$layer"/* | awk '{ all += $1 } END { printf "%.0f", all }')
    head -c $(((512 - size % 512) % 512)) /dev/zero
  done
  head -c 1024 /dev/zero
} | docker load --quiet
"""


def load(folder: str, layers: Sequence[str], heads: bytes) -> Command:
    """From pieces to an image: `layers` are those that this host lacks.

    Docker computes every layer's digest itself; it takes the layers that are not in the archive
    from what it has, and leaves nothing behind where something is wrong.
    """
    folders = [folder_of(layer) for layer in layers]
    return script(_LOAD, folder, *folders, stdin=heads, root=True).within(2 * 3600)


def heads(exported: Exported, sizes: Mapping[str, int], layers: Sequence[str]) -> bytes:
    """All that an archive has beside the content of its layers."""
    return head_blocks(exported) + b"".join(layer_head(one, sizes[one]) for one in layers)


def away(folder: str) -> Command:
    """The pieces are not needed any more."""
    return script('rm -rf -- "$1"; rmdir "${1%/*}" 2>/dev/null; exit 0', folder, root=True)


# The folder belongs to whoever logs in: other hosts read there as that user.
_BEGIN = r"""
umask 077
mkdir -p "$1/.incoming" || exit 1
[ ! -L "$1" ] && [ ! -L "$1/.incoming" ] || { echo "$1 is a link" >&2; exit 1; }
chmod 700 "$1" && chmod 755 "$1/.incoming" || exit 1
[ "$(id -u)" != 0 ] || chown "$2" "$1" "$1/.incoming"
"""


def begin(images: str, owner: str) -> Command:
    return script(_BEGIN, images, owner, root=True).within(30)


# Two free sizes in KiB, then `one` where both are one file system, then the pieces that are there.
_ROOM = r"""
folder=$1; while [ ! -e "$folder" ]; do folder=${folder%/*}; [ -n "$folder" ] || folder=/; done
docker=$(docker info --format '{{.DockerRootDir}}') || docker=/var/lib/docker
printf 'room %s %s %s\n' "$(df -Pk "$folder" | awk 'END { print $4 }')" \
  "$(df -Pk "$docker" | awk 'END { print $4 }')" \
  "$(df -Pk "$folder" "$docker" | awk 'NR > 1 { print $1 }' | sort -u | wc -l)"
"""


@dataclass(frozen=True, slots=True)
class Room:
    """Free bytes where pieces wait and where Docker keeps images; None where nobody knows."""

    pieces: int | None = None
    docker: int | None = None
    apart: bool = False

    def lacks(self, size: int) -> str:
        """Docker unpacks the whole archive beside what it makes of it."""
        here, there = size, 2 * size
        if not self.apart:
            here, there = here + there, here + there
        for what, free, need in (
            ("for its pieces", self.pieces, here),
            ("in Docker's folder", self.docker, there),
        ):
            if free is not None and free < need + _SPARE:
                return f"{need >> 20} MiB are needed {what}, and {free >> 20} MiB are free"
        return ""


_SPARE = 64 * 1024 * 1024


def room(images: str) -> Command:
    return script(_ROOM, images, root=True).within(30)


def parse_room(result: Result) -> Room:
    words = result.stdout.split()
    here, there, systems = map(whole, (*words[1:4], "", "", "")[:3])
    if here is None or there is None:
        return Room()
    return Room(here * 1024, there * 1024, apart=systems != 1)
