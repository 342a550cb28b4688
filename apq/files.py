"""Files that are whole or not there: atomic writes, and reads that fail in one clear line."""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from apq.errors import ApqError


def write_atomic(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Let `write` fill a file beside `path`, then move it there in one step.

    On any failure, a full disk or Ctrl-C included, the old file stays as it was. Raises
    ApqError when the file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ApqError(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise ApqError(
            f"cannot write {path}: {error.strerror or error}; nothing was changed"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def check_writable(path: str | Path, may_be_folder: bool = False) -> None:
    """Raise ApqError when `path` could not be written, before time is spent on its content."""
    path = Path(path)
    if path.is_dir() and not may_be_folder:
        raise ApqError(f"cannot write {path}: it is a folder")
    nearest = next(p for p in path.absolute().parents if p.exists() or p.is_symlink())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        raise ApqError(f"cannot write {path}: {error.strerror}") from None


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes atomically; raises ApqError."""
    write_atomic(path, lambda file: file.write(content))


def write_text(path: str | Path, text: str) -> None:
    """Write text atomically; raises ApqError."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; raises ApqError."""
    write_text(path, json_text(value))


def write_once(path: str | Path, value: Any) -> bool:
    """Write a value as JSON where there is no file yet; return whether the file holds it.

    For what a folder of results is of. Raises ApqError when it can be neither written nor read.
    """
    if not Path(path).exists():
        write_json(path, value)
    return read_json(path) == json.loads(json_text(value))


def json_text(value: Any) -> str:
    """Return a value as indented JSON, with null for the numbers that JSON has no word for."""
    return json.dumps(_finite(value), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def table_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return rows of the same columns as the text of a CSV file; None is an empty cell."""
    rows, text = list(rows), io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def read_text(path: str | Path) -> str:
    """Read a text file; raises ApqError when it is missing or not text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ApqError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ApqError(f"{path} is not a text file") from None


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises ApqError that names the file and the place of the mistake.

    So is a name that an object has twice: which of the two values counts, nobody could tell.
    """
    text = read_text(path)
    try:
        with naming(path):
            return json.loads(text, object_pairs_hook=_without_twins)
    except (ValueError, RecursionError) as error:
        raise ApqError(f"{path} is not valid JSON: {error}") from None


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        seen: set[str] = set()
        for number, (name, _) in enumerate(pairs, start=1):
            if name in seen:
                shown = name if len(name) <= 60 else f"{name[:60]}..."
                raise ApqError(f"entry {number} of an object, '{shown}', is there twice")
            seen.add(name)
    return content


def sha256(path: str | Path) -> str:
    """Return a file's SHA-256 as 64 hexadecimal digits; raises ApqError when unreadable."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ApqError(f"cannot read {path}: {error.strerror}") from None


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Put the file's name in front of any ApqError raised inside."""
    try:
        yield
    except ApqError as error:
        raise ApqError(f"{path}: {error}") from None
