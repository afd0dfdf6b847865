"""Which files of a repository are the model: one format of weights, and what goes with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from vllmdeploy.errors import UsageError
from vllmdeploy.tools.hub import RemoteFile
from vllmdeploy.tools.manifest_names import is_leftover, path_fault
from vllmdeploy.tools.model_files_tree import pickled

# Other frameworks' copies of the same weights, and what training left.
_OTHER_FOLDERS = ("original/*", "onnx/*", "openvino/*", "coreml/*", "runs/*", "checkpoint-*/*")
_OTHER_FILES = (
    *("*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.mlmodel", "*.npz"),
    *("*.ckpt", "*.llamafile", "training_args.bin", "optimizer.*", "scheduler.pt", "rng_state*"),
    *(".gitattributes", ".gitignore", "*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp"),
    *("*.mp4", "*.pdf"),
)
_FORMATS = (("*.safetensors",), ("*.bin",), ("*.pt", "*.pth"), ("*.gguf",))


@dataclass(frozen=True, slots=True)
class Chosen:
    files: tuple[RemoteFile, ...]
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        return sum(max(0, file.size) for file in self.files)


def choose(
    files: Sequence[RemoteFile], *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Chosen:
    """With `include`, what matches it; without, the usual choice. `exclude` always holds."""
    listed = [file for file in files if not is_leftover(file.path)]
    _refuse_names(listed)
    allowed = [file for file in listed if not _matches(file.path, exclude)]
    if include:
        kept = [file for file in allowed if _matches(file.path, include)]
        if not kept:
            raise UsageError(f"--include {' '.join(include)}: no file of the model matches")
    else:
        kept = _usual(allowed)
    if not kept:
        raise UsageError("no file is left to download", hint="look at --include and --exclude")
    return Chosen(tuple(sorted(kept, key=lambda file: file.path)), _notes(kept, listed))


def _refuse_names(files: Sequence[RemoteFile]) -> None:
    faults = [(file.path, fault) for file in files if (fault := path_fault(file.path))]
    if faults:
        path, fault = faults[0]
        more = f" (and {len(faults) - 1} more such names)" if len(faults) > 1 else ""
        raise UsageError(f"the model names a file {path[:80]!r}: {fault}{more}")


def _usual(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    plain = [f for f in files if not _matches(f.path, (*_OTHER_FOLDERS, *_OTHER_FILES))]
    formats = [[file for file in plain if _matches(file.path, kind)] for kind in _FORMATS]
    weights = next((found for found in formats if found), formats[0])
    if weights is formats[-1] and len(weights) > 1:
        names = ", ".join(file.path for file in weights[:4])
        raise UsageError(
            f"the repository holds {len(weights)} GGUF files, each a whole model: {names}, ...",
            hint=f"choose with --include {weights[0].path} --include '*.json'",
        )
    others = {file.path for found in formats for file in found}
    rest = [file for file in plain if file.path not in others]
    return rest + _without_consolidated(weights)


def _without_consolidated(weights: list[RemoteFile]) -> list[RemoteFile]:
    """The same weights a second time, in Mistral's own layout; vLLM would prefer them."""
    others = [f for f in weights if not PurePosixPath(f.path).name.startswith("consolidated")]
    at_top = any("/" not in file.path for file in others)
    return others if at_top else weights


def _matches(path: str, patterns: Sequence[str]) -> bool:
    """A pattern without `/` means a file of that name in any folder."""
    name = PurePosixPath(path).name
    return any(
        fnmatchcase(path, f"{pattern}*" if pattern.endswith("/") else pattern)
        or ("/" not in pattern and fnmatchcase(name, pattern))
        for pattern in patterns
    )


def _notes(kept: Sequence[RemoteFile], listed: Sequence[RemoteFile]) -> tuple[str, ...]:
    paths = tuple(file.path for file in kept)
    notes: list[str] = []
    if len(listed) > len(kept):
        left = sum(max(0, file.size) for file in listed) - sum(max(0, f.size) for f in kept)
        notes.append(
            f"{len(listed) - len(kept)} files ({size_text(left)}) are left out: other formats of"
            " the weights, pictures, or by --include and --exclude"
        )
    notes += weight_notes(paths)
    return tuple(notes)


def weight_notes(paths: Sequence[str]) -> list[str]:
    """What somebody should know about these files before an engine loads them."""
    notes: list[str] = []
    dangerous = pickled(tuple(paths))
    if dangerous:
        notes.append(
            f"pickled weights ({_some(dangerous)}): loading them runs code of whoever made them;"
            " prefer a model in safetensors"
        )
    code = tuple(path for path in paths if path.endswith(".py"))
    if code:
        notes.append(f"it holds Python code ({_some(code)}), which runs only where it is trusted")
    if not any(_matches(path, [kind for each in _FORMATS for kind in each]) for path in paths):
        notes.append("there are no weights among these files")
    return notes


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")


def size_text(count: float) -> str:
    """Bytes for people: 1023 B, 1.5 KiB, 27.3 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
