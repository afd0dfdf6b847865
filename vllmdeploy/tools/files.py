"""Files and folders on a host, written so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from vllmdeploy.core.command import Command, Result, script
from vllmdeploy.core.fact import Fact

# stdin ends too when the one who writes to it dies: only the count of bytes tells half a file from
# a whole one. `$1` is the file, `$2` the bytes that are to come.
TAKE_WHOLE = (
    '{ cat > "$1.new" && { [ "$(wc -c < "$1.new")" -eq "$2" ]'
    """ || { rm -f "$1.new"; echo 'cut short on its way' >&2; false; }; }; }"""
)
# A new name in the same folder, then a rename: a crash leaves the old file or the new one.
_WRITE = (
    # Where root's umask is strict, a container's user could not enter the folder.
    '(umask 022 && mkdir -p "${1%/*}") && umask 077'
    f' && {TAKE_WHOLE} && chmod "$3" "$1.new" && mv -f "$1.new" "$1"'
)
_REWRITE = (
    f'umask 077; {TAKE_WHOLE} && chown "$(stat -c %u:%g "$1")" "$1.new"'
    ' && chmod "$(stat -c %a "$1")" "$1.new" && mv -f "$1.new" "$1"'
)
_WRITE_OWNED = _WRITE.replace("mv -f", 'chown "$4" "$1.new" && mv -f')


def write(path: str, content: bytes, *, mode: str = "0644", owner: str = "") -> Command:
    """The content travels on stdin; `owner` is `uid:gid`."""
    text, extra = (_WRITE_OWNED, (owner,)) if owner else (_WRITE, ())
    size = str(len(content))
    return script(text, path, size, mode, *extra, stdin=content, root=True).within(120)


def write_open(path: str, content: bytes) -> Command:
    """A file that everybody may read, in the plan too."""
    return replace(write(path, content), open_stdin=True)


def rewrite(path: str, content: bytes) -> Command:
    """New content for a file that is there, which keeps its owner and mode."""
    return script(_REWRITE, path, str(len(content)), stdin=content, root=True).within(120)


def is_there(path: str) -> Command:
    """Says `yes` or `no`; who may not look there fails, which is neither."""
    return script('if [ -f "$1" ]; then echo yes; else echo no; fi', path, root=True)


def folders(*paths: str, mode: str = "0755", owner: str = "") -> Command:
    uid, _, gid = owner.partition(":")
    owned = ("-o", uid, "-g", gid) if owner else ()
    return Command(("install", "-d", "-m", mode, *owned, "--", *paths), root=True)


def remove(*paths: str) -> Command:
    return Command(("rm", "-rf", "--", *paths), root=True)


def read(path: str) -> Command:
    return Command(("cat", "--", path), root=True)


def append_line(path: str, line: str) -> Command:
    return script('cat >> "$1"', path, stdin=line.rstrip("\n").encode() + b"\n", root=True)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


_DIGESTS = """
cd "$1" 2>/dev/null || exit 0
find . -type f ! -name '*.new' -exec sha256sum {} +
"""


def _parse_digests(result: Result) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in result.stdout.splitlines():
        digest_, _, path = line.partition("  ")
        if len(digest_) == 64:
            found[path.removeprefix("./")] = digest_
    return found


def digests(folder: str) -> Fact[dict[str, str]]:
    """sha256 of every file below a folder, by path; empty where there is no such folder."""
    return Fact(
        name=f"digests of {folder}",
        command=script(_DIGESTS, folder, root=True).within(20),
        parse=_parse_digests,
    )


def listing(folder: str) -> Fact[tuple[str, ...]]:
    return Fact(
        name=f"names in {folder}",
        command=script('ls -1 "$1" 2>/dev/null || exit 0', folder, root=True).within(20),
        parse=lambda result: tuple(result.stdout.split()),
    )


_HOLDING = """
cd "$1" 2>/dev/null || exit 0
for name in *; do
  if [ -f "$name/$2" ]; then printf '%s\\n' "$name"
  elif [ -e "$name" ]; then printf '%s?\\n' "$name"
  fi
done
"""


def holding(folder: str, file: str) -> Fact[tuple[str, ...]]:
    """What is in a folder: a folder's name where this file is in it, with a `?` behind where not.

    Who was interrupted may have made the folder and not the file.
    """
    return Fact(
        name=f"folders in {folder}",
        command=script(_HOLDING, folder, file, root=True).within(20),
        parse=lambda result: tuple(result.stdout.split()),
    )
