"""Models on a host: what is there, their hashes, and the few commands that change them."""

from __future__ import annotations

from collections.abc import Sequence

from vllmdeploy.core.command import Command, script
from vllmdeploy.core.fact import Fact
from vllmdeploy.tools.manifest import Manifest
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.model_files_found import FoundStore, parse_look

_LOOK_LIMIT_S = 60.0
# Slower than any disk that can serve a model.
_SLOWEST_BYTES_PER_S = 10_000_000
_HASH_AT_ONCE = 4


# $1 is MODEL_PATH, $2 a model's name or nothing for all. Links are told, never followed.
_LOOK = r"""
export LC_ALL=C
[ -d "$1" ] || { folder=$1
  while [ ! -e "$folder" ]; do folder=${folder%/*}; [ -n "$folder" ] || folder=/; done
  df -Pk "$folder" | awk 'END { print "free " $4 }'; [ -w "$folder" ] && echo writable
  exit 0; }
echo there
df -Pk "$1" | awk 'END { print "free " $4 }'
[ -w "$1" ] && echo writable
look() (
  cd "$2" 2>/dev/null || { printf '%s %s\nodd .\n' "$1" "$3"; exit 0; }
  printf '%s %s\nhome %s\n' "$1" "$3" "$(pwd -P)"
  meta=.vllmdeploy
  if [ -f $meta/READY ]; then printf 'ready %s\n' "$(head -c 64 $meta/READY)"; fi
  if [ -f $meta/MANIFEST.json ]; then
    printf 'digest %s\n' "$(sha256sum < $meta/MANIFEST.json | head -c 64)"; fi
  if [ -f $meta/TOTAL ]; then printf 'expected %s\n' "$(head -c 20 $meta/TOTAL)"; fi
  [ ! -d $meta/came ] || ( cd $meta/came && find . -type f -exec sh -c 'for path; do
    printf "came %s\n" "${path#./}"
    sort -n "$path" | awk -v end=-1 "
      function told() { if (end >= 0) printf \"range %.0f %.0f\n\", begin, end }
      \$1 > end { told(); begin = \$1; end = \$1 + \$2; next }
      \$1 + \$2 > end { end = \$1 + \$2 }
      END { told() }"
    done' sh {} + )
  find . -path ./$meta -prune -o -type f -exec stat -c 'file %s %n' {} + 2>/dev/null \
    || printf 'odd .\n'
  find . -path ./$meta -prune -o -type l -exec sh -c 'for path; do
    printf "link %s\nto %s\nat %s\nis %s\n" "$path" "$(readlink "$path")" \
      "$([ -e "$path" ] && readlink -f "$path")" "$([ -f "$path" ] && stat -L -c %s "$path")"
    done' sh {} + 2>/dev/null
  find . -path ./$meta -prune -o ! -type f ! -type l ! -type d -exec printf 'odd %s\n' {} + \
    2>/dev/null
)
each() {
  for path in "$2"/*; do
    name=${path##*/}
    case $name in *[!A-Za-z0-9._-]*) continue;; esac
    if [ -d "$path" ]; then look "$1" "$path" "$name"; fi
  done
}
if [ -n "$2" ]; then
  for kind in model incoming; do
    folder=$1; [ $kind = model ] || folder=$1/.incoming
    if [ -d "$folder/$2" ]; then look $kind "$folder/$2" "$2"; fi
  done
else
  each model "$1"
  each incoming "$1/.incoming"
fi
exit 0
"""


def look(root: str, name: str = "") -> Fact[FoundStore]:
    """MODEL_PATH with all its models, or with one of them."""
    return Fact(
        name=f"models in {root}",
        command=script(_LOOK, root, name, root=True).within(_LOOK_LIMIT_S),
        parse=parse_look,
    )


def read_manifest(folder: str) -> Command:
    return Command(("cat", "--", f"{folder}/.vllmdeploy/MANIFEST.json"), root=True).within(60)


# openssl knows the processor's own instructions for it: three to four times as fast where they are.
FASTEST_SHA256 = """
sha256() { xargs -0 "$@" sha256sum --; }
if openssl dgst -sha256 -r /dev/null >/dev/null 2>&1; then
  sha256() { xargs -0 "$@" openssl dgst -sha256 -r; }
fi
"""
_HASHES = FASTEST_SHA256 + 'cd "$1" && sha256 -n "$2" -P "$3"'


def hashes(folder: str, paths: Sequence[str], *, total: int) -> Command:
    """Says `HASH  PATH` for every path, in the order in which they are done."""
    at_a_time = 1 if len(paths) <= 256 else 16
    names = "".join(f"./{path}\0" for path in paths).encode()
    text = script(_HASHES, folder, str(at_a_time), str(_HASH_AT_ONCE), stdin=names, root=True)
    return text.within(300 + total / _SLOWEST_BYTES_PER_S)


def parse_hash(line: str) -> tuple[str, str] | None:
    """The path and sha256 of one line, None for anything else."""
    sha256, _, path = line.partition(" ")
    if len(sha256) != 64 or path[:1] not in (" ", "*"):
        return None
    return path[1:].removeprefix("./"), sha256


# $1 MODEL_PATH, $2 the name. The manifest comes on stdin. READY is the last thing written, and
# all else is on the disk before: a crash at any point leaves a folder that is not READY.
_PUBLISH = """
set -eu
umask 022
incoming=$1/.incoming/$2
if [ -e "$1/$2" ] || [ -L "$1/$2" ]; then echo "$1/$2 is there already" >&2; exit 1; fi
if [ -L "$1/.incoming" ] || [ -L "$incoming" ]; then echo "$incoming is a link" >&2; exit 1; fi
rm -rf "$incoming/.cache" "$incoming/.vllmdeploy"
mkdir "$incoming/.vllmdeploy"
cat > "$incoming/.vllmdeploy/MANIFEST.json"
[ "$(wc -c < "$incoming/.vllmdeploy/MANIFEST.json")" -eq "$3" ]
chmod -R u+rwX,go+rX "$incoming"
sync -f "$incoming" 2>/dev/null || sync
mv "$incoming" "$1/$2"
"""
# A model that is a link to elsewhere, or keeps its marks elsewhere, is not ours to write to.
_OWN = """
set -eu
umask 022
meta=$1/$2/.vllmdeploy
for path in "$1/$2" "$meta"; do
  [ ! -L "$path" ] || { echo "$path is a link: a model is a folder in $1 itself" >&2; exit 1; }
done
"""
_MARK = (
    _OWN
    + """
[ "$(sha256sum < "$meta/MANIFEST.json" | head -c 64)" = "$3" ] \
  || { echo "$meta/MANIFEST.json is another one" >&2; exit 1; }
printf '%s\\n' "$3" > "$meta/READY.new"
sync -f "$meta" 2>/dev/null || sync
mv -f "$meta/READY.new" "$meta/READY"
sync -f "$meta" 2>/dev/null || sync
"""
)


def publish(place: ModelPlace, manifest: Manifest) -> Command:
    """From the incoming folder, whose files have been verified, to the model's own name."""
    size = str(len(manifest.text))
    text = script(_PUBLISH, place.root, place.name, size, stdin=manifest.text, root=True)
    return text.within(1800)


def mark_ready(place: ModelPlace, manifest: Manifest) -> Command:
    """The last step: whoever reads READY may rely on every file."""
    return script(_MARK, place.root, place.name, manifest.digest, root=True).within(1800)


_WRITE_MANIFEST = (
    _OWN
    + """
mkdir -p "$meta"
rm -f "$meta/READY"
cat > "$meta/MANIFEST.new"
[ "$(wc -c < "$meta/MANIFEST.new")" -eq "$3" ]
mv -f "$meta/MANIFEST.new" "$meta/MANIFEST.json"
"""
)


def write_manifest(place: ModelPlace, manifest: Manifest) -> Command:
    """For a folder that somebody put there by hand, or one that was repaired in place."""
    size = str(len(manifest.text))
    text = script(_WRITE_MANIFEST, place.root, place.name, size, stdin=manifest.text, root=True)
    return text.within(120)


# $1 MODEL_PATH, $2 the name, $3 its size. An unfinished copy of it may be there already.
_BEGIN = """
set -eu
umask 022
mkdir -p "$1/.incoming"
incoming=$1/.incoming/$2
if [ -L "$1/.incoming" ] || [ -L "$incoming" ]; then echo "$incoming is a link" >&2; exit 1; fi
mkdir -p "$incoming/.vllmdeploy"
rm -rf "$incoming/.cache"
printf '%s\n' "$3" > "$incoming/.vllmdeploy/TOTAL"
found=$(find "$incoming" ! -type f ! -type d | head -n 1)
[ -z "$found" ] || { echo "$found is neither a file nor a folder; remove it" >&2; exit 1; }
"""


def begin(place: ModelPlace, total: int) -> Command:
    """The incoming folder, with nothing in it that could lead out of it."""
    return script(_BEGIN, place.root, place.name, str(total), root=True).within(120)


def discard(folder: str, paths: Sequence[str]) -> Command:
    """Remove these files, which are no part of the model."""
    names = "".join(f"./{path}\0" for path in paths).encode()
    return script('cd "$1" && xargs -0 rm -f --', folder, stdin=names, root=True).within(300)


def unmark(place: ModelPlace) -> Command:
    """From here on nobody takes it for whole."""
    return script(_OWN + 'rm -f -- "$meta/READY"', place.root, place.name, root=True)


# The name is checked to be one plain part, and the folder to be really there: never through a
# link to some other place. Without READY nobody takes what an interrupted `rm` leaves for whole.
_WITHIN = """
set -eu
root=$(cd -P -- "$1" && pwd -P)
within() {
  [ ! -L "$1/$2" ] || { echo "$1/$2 is a link; remove it by hand" >&2; exit 1; }
  [ -d "$1/$2" ] || return 0
  found=$(cd -P -- "$1/$2" && pwd -P)
  [ "$found" = "$1/$2" ] || { echo "$found is outside of $1" >&2; exit 1; }
"""
_REMOVE = (
    _WITHIN
    + """
  rm -f -- "$found/.vllmdeploy/READY"
  rm -rf -- "$found"
}
within "$root" "$2"
[ ! -L "$root/.incoming" ] && within "$root/.incoming" "$2"
rm -f -- "$root/.incoming/.$2.lock"
"""
)
_REOPEN = (
    _WITHIN
    + """
  rm -f -- "$found/.vllmdeploy/READY"
  mkdir -p "$root/.incoming"
  [ ! -L "$root/.incoming" ] || { echo "$root/.incoming is a link" >&2; exit 1; }
  rm -rf -- "$root/.incoming/$2"
  mv "$found" "$root/.incoming/$2"
}
within "$root" "$2"
"""
)


def remove(place: ModelPlace) -> Command:
    """The model and what an unfinished copy of it left, and nothing else."""
    return script(_REMOVE, place.root, place.name, root=True).within(1800)


def reopen(place: ModelPlace) -> Command:
    """A model that is not whole becomes an unfinished copy again, to be repaired.

    It has more than what an unfinished copy of it may have left, which goes.
    """
    return script(_REOPEN, place.root, place.name, root=True).within(120)
