"""Ranges of big files between hosts: a host sends on what it has of a file before it has it all.

A file that comes in ranges grows below `.vllmdeploy` of the incoming folder, with a list of what
has come of it beside: a file in the folder itself is whole, or ends where the rest begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vllmdeploy.core.command import Command, script
from vllmdeploy.tools.manifest_names import ModelPlace
from vllmdeploy.tools.model_files import FASTEST_SHA256
from vllmdeploy.tools.rsync import ENDS_STALE_PULL, ENTER, KEEPS_MEMORY, Keys, Road, transport

GROWING, CAME = ".vllmdeploy/growing", ".vllmdeploy/came"
SHORT = "is shorter than that"
_BLOCK = 65536
_NOTED_EVERY_S, _SILENT_S = 1, 30
_SILENT_TIMES = round(_SILENT_S / _NOTED_EVERY_S)
_MOST_STEP = 64 * 1024 * 1024
_PROGRESS, _WHOLE = re.compile(r"came (\d+)"), re.compile(r"whole (\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Bytes of one file on their way, from `start` to before `end`. `number`: as with
    `rsync.Pull`."""

    place: ModelPlace
    number: int
    path: str
    start: int
    end: int
    limit_kib_s: int | None = None


# $1 the incoming folder, $2 the most to read in one go (0: all), $3 KiB/s (0: no limit). Then a
# range is $number, $path, from $at to before $end, and its bytes are on descriptor 3. What has come
# is noted as it comes, by where dd stands in the file: a range that is cut goes on from there. What
# a crash left noted but unwritten, the file's hash finds.
_TAKE = (
    """
umask 022; export LC_ALL=C
cd -P -- "$1" 2>/dev/null || { mkdir -p "$1" && cd -P -- "$1"; } || exit 1
[ -d .vllmdeploy/pulls ] || mkdir -p .vllmdeploy/pulls || exit 1
step=$2 pace=$3
shift 3
mine=.vllmdeploy/pulls/by.$$
trap 'rm -f "$mine".*' EXIT
ends_stale() {
"""
    + ENDS_STALE_PULL
    + f"""
}}
clock() {{ read -r now rest < /proc/uptime; now=${{now%.*}}${{now#*.}}; }}
note() {{ printf '%s %s\\n' "$at" "$1" >> "$came" && echo "came $((at + $1 - begun))"; }}
# $1 dd: its second descriptor is where the file is written.
watch() {{
  seen=$at silent=0
  while sleep {_NOTED_EVERY_S} >&-; do
    read -r name position < "/proc/$1/fdinfo/1" || exit 0
    if [ "$position" -gt "$seen" ]; then
      seen=$position silent=0
      note $((seen - at)) || exit 1
    else
      silent=$((silent + 1))
      [ "$silent" -lt {_SILENT_TIMES} ] || {{
        echo "nothing more came for {_SILENT_S} s" >> "$mine.said"; kill "$1"; exit 1; }}
    fi
  done 2>/dev/null
}}
# A source that is silent would keep an ssh for ever that nobody listens to any more.
stop() {{ kill $writer $watcher "$(cat "$mine.ssh" 2>/dev/null)" 2>/dev/null; }}
begin() {{
  exec 3<&0
  served= writer= watcher=
  read -r me rest < /proc/self/stat
  trap 'rm -f $served' EXIT
  trap 'stop; exit 143' TERM
}}
# Only one writes a range. The file that says who is emptied when it has come, and goes at the end.
claim() {{
  own=.vllmdeploy/pulls/$number data={GROWING}/$path came={CAME}/$path
  [ -d "${{data%/*}}" ] && [ -d "${{came%/*}}" ] ||
    mkdir -p "${{data%/*}}" "${{came%/*}}" || return 1
  ends_stale
  served="$served $own.pid"
  echo "$me" > "$own.pid"
}}
take() {{
  begun=$at
  while [ "$at" -lt "$end" ]; do
    part=$((end - at))
    [ "$step" = 0 ] || [ "$part" -le "$step" ] || part=$step
    clock; before=$now
    : > "$mine.said"
    dd bs={_BLOCK} count="$part" iflag=fullblock,count_bytes \\
      of="$data" seek=$((at / {_BLOCK})) conv=notrunc <&3 2>>"$mine.said" 4<&- 5<&- &
    writer=$!
    watch $writer <&- 3<&- 4<&- 5<&- &
    watcher=$!
    wait $writer
    kill $watcher 2>/dev/null; wait $watcher 2>/dev/null
    writer= watcher= said=
    while IFS= read -r line; do said=$line; done < "$mine.said"
    got=${{said%% *}}
    case $got in "" | *[!0-9]*) got=0;; esac
    whole=$((got < part ? got / {_BLOCK} * {_BLOCK} : got))
    if [ "$whole" -gt 0 ]; then note "$whole" || return 1; fi
    [ "$got" = "$part" ] || {{
      echo "$got bytes of $path came instead of $part" >&2
      grep -v -e "records in" -e "records out" -e copied "$mine.said" >&2
      return 1; }}
    at=$((at + part))
    clock
    left=$((pace == 0 ? 0 : part * 100 / (pace * 1024) - now + before))
    [ "$left" -le 0 ] || sleep "$((left / 100)).$(printf %02d $((left % 100)))"
  done
}}
"""
)

# What came of it in an earlier try stands in the order in which it came; dd writes whole blocks. A
# crash may have left anything for a line.
_GO_ON = f"""
go_on() {{
  [ ! -f "$came" ] || while read -r from count; do
    case $from:$count in :* | *: | *[!0-9:]*) continue;; esac
    [ "$from" -gt "$at" ] || [ $((from + count)) -le "$at" ] || at=$((from + count))
  done < "$came"
  [ "$at" -ge "$end" ] || at=$((at / {_BLOCK} * {_BLOCK}))
}}
"""

# $1 ssh's words, $2 the folder of its sockets, $3 the source's address, $4 the model's name. On
# stdin NUMBER START END PATH of each range that is wanted; between two the source waits. When the
# one who asks is gone, or the source is, all of it ends: every end holds a pipe of the others.
_LANE = (
    _TAKE
    + _GO_ON
    + KEEPS_MEMORY
    + """
[ -d "$2" ] || mkdir -p -m 700 "$2" || exit 1
asks=$2/asks.$$
trap 'rm -f "$mine".* "$asks"' EXIT
mkfifo -m 600 "$asks" || exit 1
ask() {
  exec sh -c 'echo $$ > "$1" && cd / && words=$2 && shift 2 && eval "exec $words \\"\\$@\\""' ssh \\
    "$mine.ssh" "$1" "$3" "vllmdeploy-ranges $4"
}
serve() {
  begin
  while IFS= read -r line <&4; do
    number=${line%% *} line=${line#* }
    at=${line%% *} line=${line#* }
    end=${line%% *} path=${line#* }
    claim || exit 1
    go_on
    if [ "$at" -lt "$end" ]; then
      printf '%s %s %s\\n' "$at" $((end - at)) "$path" >&5 && take || { stop; exit 1; }
    fi
    : > "$own.pid"
    echo "whole $number"
  done
}
exec 4<&0 5<>"$asks"
ask "$@" < "$asks" 2>"$mine.err" 4<&- 5<&- | serve &
exec 4<&- 5<&-
wait $!
status=$?
[ $status = 0 ] || [ ! -s "$mine.err" ] || cat "$mine.err" >&2
exit $status
"""
)


def _paced(place: ModelPlace, limit_kib_s: int | None) -> tuple[str, ...]:
    pace = limit_kib_s or 0
    step = max(_BLOCK, min(_MOST_STEP, pace * 512 // _BLOCK * _BLOCK)) if pace else 0
    return (place.incoming, str(step), str(pace))


def lane(
    place: ModelPlace, road: Road, keys: Keys, *, connection: str = "", limit_kib_s: int | None
) -> Command:
    """Asks one source for ranges, as `asked` says on its stdin, until that ends; says how far each
    is and when it is whole. `connection`: as with `rsync.Pull`."""
    words = (transport(road, keys, connection), keys.connections, road.ip, place.name)
    return script(_LANE, *_paced(place, limit_kib_s), *words, root=True).within(float("inf"))


def asked(wanted: Range) -> bytes:
    """A line for a lane. Of what is there of the range already nothing is asked."""
    if "\n" in wanted.path:
        raise ValueError(f"a path of two lines: {wanted.path!r}")
    line = f"{wanted.number} {wanted.start} {wanted.end} {wanted.path}\n"
    return line.encode("utf-8", "surrogateescape")


_TAKE_ONE = (
    _TAKE
    + """
number=$1 path=$2 at=$3 end=$4
one() { begin; claim && take || { stop; exit 1; }; }
exec 4<&0
one <&4 &
exec 4<&-
wait $!
"""
)


def take(wanted: Range, start: int) -> Command:
    """The rest of one range, whose bytes come on stdin."""
    words = (str(wanted.number), wanted.path, str(start), str(wanted.end))
    first = _paced(wanted.place, wanted.limit_kib_s)
    return script(_TAKE_ONE, *first, *words, root=True).within(float("inf"))


# $1 the folder, $2 the path: where a file is, wherever it is on its way from there to here.
FIND_GROWING = f"""
growing() {{
  file=./$1
  [ -f "$file" ] || file=./{GROWING}/$1
  [ -f "$file" ] || file=./$1
}}
"""


def give(place: ModelPlace, wanted: Range, start: int) -> Command:
    """Says the bytes from `start` to the end of the range."""
    count = -(-(wanted.end - start) // _BLOCK)
    text = (
        ENTER
        + FIND_GROWING
        + f'growing "$3"; exec dd if="$file" bs={_BLOCK} skip="$4" count="$5" 2>/dev/null'
    )
    words = (place.root, place.name, wanted.path, str(start // _BLOCK), str(count))
    return script(text, *words, root=True).within(float("inf"))


_WHERE = f"""
cd -P -- "$1" 2>/dev/null || {{ echo "$3"; exit 0; }}
came={CAME}/$2 at=$3 end=$4
{_GO_ON}
go_on
echo "$at"
"""


def where(wanted: Range) -> Command:
    """Says from where on the range is still to come."""
    words = (wanted.place.incoming, wanted.path, str(wanted.start), str(wanted.end))
    return script(_WHERE, *words, root=True).within(30)


# It is moved to its place whatever it is: what is wrong in it is mended there.
_PUT_TOGETHER = (
    FASTEST_SHA256
    + FIND_GROWING
    + f"""
umask 022
cd -P -- "$1" || exit 1
file={GROWING}/$2
[ -f "$file" ] || file=./$2
said=$(printf '%s\\0' "$file" | sha256) || exit 1
if [ "$file" != "./$2" ]; then
  case $2 in */*) mkdir -p -- "./${{2%/*}}" || exit 1;; esac
  mv -f -- "$file" "./$2" || exit 1
fi
rm -f -- "{CAME}/$2"
printf '%s\\n' "$said"
"""
)


def put_together(place: ModelPlace, path: str, size: int) -> Command:
    """Gives a file of which all ranges came its place, and says its sha256."""
    text = script(_PUT_TOGETHER, place.incoming, path, root=True)
    return text.within(300 + size / 10_000_000)


def leftovers(paths: Iterable[str]) -> list[str]:
    """The files below the incoming folder in which these grew."""
    return [f"{folder}/{path}" for path in paths for folder in (GROWING, CAME)]


def progress(line: str) -> int | None:
    """The bytes that came, of a line of progress."""
    found = _PROGRESS.fullmatch(line)
    return int(found[1]) if found else None


def whole(line: str) -> int | None:
    """The number of a range that has come, of what a lane says."""
    found = _WHOLE.fullmatch(line)
    return int(found[1]) if found else None
