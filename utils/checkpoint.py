"""The one place that reads and writes files of tensors."""

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from apq import files
from apq.errors import ApqError


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values atomically; raises ApqError when it cannot."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    files.write_atomic(path, lambda file: file.write(buffer.getbuffer()))


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a dict of tensors and plain values; code in the file is never run.

    Raises ApqError when the file is missing, cut short, or holds anything else, and when a bit of
    it changed since it was written (files older than torch 1.6 have no checksums to tell by).
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise ApqError(f"there is no file {path}") from None
    except OSError as error:
        raise ApqError(f"cannot read {path}: {error.strerror}") from None
    _check_sums(path, data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on damaged files; we say it below
            content = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        raise ApqError(
            f"{path} is no file of tensors, or holds objects that only running its code could "
            f"restore; that is refused"
        ) from None
    except Exception as error:  # a damaged archive raises nearly anything
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        raise ApqError(f"{path} is cut short or was not written by torch") from None
    if not isinstance(content, dict):
        raise ApqError(f"{path} holds a {type(content).__name__}; expected a dict of tensors")
    return content


def _check_sums(path: str | Path, data: bytes) -> None:
    """Compare every part with the CRC-32 that torch stores beside it and never looks at."""
    try:
        if not zipfile.is_zipfile(io.BytesIO(data)):
            return
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            damaged = archive.testzip()
    except Exception:  # a damaged directory raises nearly anything
        damaged = "its directory"
    if damaged:
        raise ApqError(f"{path} is damaged: {damaged} does not match its checksum")


def state_dict(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the state dict of a loaded file, whether or not it is wrapped as `state_dict`.

    Raises ApqError when it is anything but tensors by name.
    """
    inner = content.get("state_dict", content)
    if not isinstance(inner, dict):
        raise ApqError(f"no state dict but a {type(inner).__name__}: expected tensors by name")
    for name, tensor in inner.items():
        if not isinstance(name, str):
            raise ApqError(f"no state dict: {name!r} is no tensor's name")
        if not isinstance(tensor, torch.Tensor):
            raise ApqError(f"no state dict: '{name}' is {type(tensor).__name__}, not a tensor")
    return inner
