"""The folder `exps/<name>` of one found subnet and everything measured of it."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from apq import files
from apq.checks import TOO_LARGE
from apq.errors import ApqError
from apq.lock import Lock, training_lock
from apq.space import PAPER_SPACE, SearchSpace
from apq.subnet import Subnet

EXPERIMENTS_DIR = Path("exps")
BEST_NAME = "model_best.pth.tar"
STOPPED = ".stopped"
"""What is put behind the name of an experiment that half a search must not replace."""


@dataclass(frozen=True)
class Experiment:
    """One experiment folder; its files are read when asked for."""

    dir: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "dir", Path(self.dir))

    @classmethod
    def path_for(cls, name: str, root: str | Path = EXPERIMENTS_DIR) -> Path:
        """Return the folder of an experiment name; raises ApqError when it is not a plain name."""
        if not re.fullmatch(rf"[A-Za-z0-9_][A-Za-z0-9._-]{{0,99}}({re.escape(STOPPED)})?", name):
            raise ApqError(
                f"experiment name {name[:120]!r} is not a plain name: use at most 100 letters, "
                f"digits, '.', '_' and '-'; the folder is made under {root}/"
            )
        return Path(root) / name

    @classmethod
    def check_free(
        cls, name: str, root: str | Path = EXPERIMENTS_DIR, overwrite: bool = False
    ) -> None:
        """Raise ApqError when `create` would fail, before time is spent on what it would keep."""
        path = cls.path_for(name, root)
        files.check_writable(path, may_be_folder=True)
        if path.is_dir() and any(path.iterdir()) and not (path / "arch").is_file():
            raise ApqError(
                f"{path} is no experiment, and replacing it would lose what is in it: choose "
                "another --exp_name, or move it away"
            )
        if path.exists() and not overwrite:
            raise ApqError(
                f"experiment {path} exists: choose another --exp_name, or replace it with "
                "--overwrite"
            )
        with _untouched(path):
            pass

    @classmethod
    @contextlib.contextmanager
    def claim(cls, name: str, root: str | Path = EXPERIMENTS_DIR) -> Iterator[None]:
        """Hold a name meanwhile, so that no other search makes an experiment of it.

        Raises ApqError when one is at work on it.
        """
        path = cls.path_for(name, root)
        claim = path.with_name(f".{name}.search")
        lock = Lock(claim, "searches for an experiment of this name; it holds")
        with lock.held():
            try:
                yield
            finally:
                claim.unlink(missing_ok=True)

    @classmethod
    def create(
        cls,
        name: str,
        subnet: Subnet,
        cost: float,
        report: dict[str, Any],
        root: str | Path = EXPERIMENTS_DIR,
        overwrite: bool = False,
        others: Mapping[str, bytes] = MappingProxyType({}),
    ) -> Experiment:
        """Write a new experiment in one step: `arch`, `lat`, `search.json` and `others` by name.

        `cost` is in the unit of what the search was bound by first; `report` explains the run.
        Raises ApqError when the experiment exists (unless `overwrite`), is being finetuned, or
        cannot be written; an existing one is replaced only after the new one is complete.
        """
        path = cls.path_for(name, root)
        cls.check_free(name, root, overwrite)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{name}."))
        except OSError as error:
            raise ApqError(f"cannot write {path}: {error.strerror}") from None
        try:
            new = staging / "new"
            files.write_text(new / "arch", subnet.to_json() + "\n")
            files.write_text(new / "lat", json.dumps([cost]) + "\n")
            files.write_json(new / "search.json", report)
            for other, content in others.items():
                files.write_bytes(new / other, content)
            with _untouched(path):
                if path.exists():
                    path.rename(staging / "old")
                new.rename(path)
        except OSError as error:
            raise ApqError(f"cannot write {path}: {error.strerror}; nothing was changed") from None
        finally:
            # Whatever came between, Ctrl-C included, an experiment that was there stays.
            if (staging / "old").exists() and not path.exists():
                (staging / "old").rename(path)
            shutil.rmtree(staging, ignore_errors=True)
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> Experiment:
        """Open an existing folder; raises ApqError when it holds no `arch`."""
        path = Path(path)
        if not (path / "arch").is_file():
            known = sorted(p.parent.name for p in path.parent.glob("*/arch"))
            more = f" and {len(known) - 8} more" if len(known) > 8 else ""
            listed = ", ".join(known[:8]) + more
            hint = f"; in {path.parent} there are: {listed}" if known else ""
            raise ApqError(f"{path} is no experiment: it has no file 'arch'{hint}")
        return cls(path)

    def subnet(self, space: SearchSpace = PAPER_SPACE) -> Subnet:
        """Read the subnet from `arch`; raises ApqError that names the file."""
        path = self.dir / "arch"
        text = files.read_text(path)
        with files.naming(path):
            return Subnet.from_json(text, space)

    def report(self) -> dict[str, Any]:
        """Return what the search wrote of itself, or an empty dict for an authors' folder.

        Raises ApqError when the file is damaged.
        """
        path = self.dir / "search.json"
        report = files.read_json(path) if path.exists() else {}
        if not isinstance(report, dict):
            raise ApqError(f"{path} is damaged: it must hold a JSON object")
        with files.naming(path):
            _check_report(report)
        return report

    @property
    def checkpoint_dir(self) -> Path:
        """Where finetuning keeps its checkpoints."""
        return self.dir / "checkpoint"

    @property
    def best_checkpoint(self) -> Path:
        """The checkpoint that validation liked best."""
        return self.checkpoint_dir / BEST_NAME


@contextlib.contextmanager
def _untouched(path: Path) -> Iterator[None]:
    """Keep finetuning out of a folder meanwhile; raises ApqError when it is under way there."""
    states = Experiment(path).checkpoint_dir
    with training_lock(states).held() if states.is_dir() else contextlib.nullcontext():
        yield


_NUMBER = (int, float)
# What others rely on: of what a search tells of itself, and of each of its limits.
_REPORTED = {
    "type": str,
    "unit": str,
    "accounting": str,
    "constraint": _NUMBER,
    "cost": _NUMBER,
    "image_size": int,
    "n_classes": int,
    "limits": dict,
    "use_of_limits": list,
    "predicted_accuracy": _NUMBER,
    "lower_bound": _NUMBER,
    "spread": _NUMBER,
    "latency_ms": _NUMBER,
    "energy_mj": _NUMBER,
    "bitops": _NUMBER,
    "size_bytes": _NUMBER,
}
_OF_A_LIMIT = {"type": str, "unit": str, "maximum": _NUMBER, "cost": _NUMBER}


def _check_report(report: dict[str, Any]) -> None:
    """Raise ApqError when a value that others rely on is not of its kind."""

    def check(values: dict[str, Any], kinds: dict[str, Any]) -> None:
        for name, kind in kinds.items():
            value = values.get(name)
            is_kind = isinstance(value, kind) and not isinstance(value, bool)
            if not is_kind or (isinstance(value, _NUMBER) and not abs(value) < TOO_LARGE):
                raise ApqError(f"it is damaged: '{name}' is {value!r}")

    check(report, {name: kind for name, kind in _REPORTED.items() if name in report})
    if report.get("use_of_limits") == []:
        raise ApqError("it is damaged: 'use_of_limits' is empty")
    for row in report.get("use_of_limits", []):
        if not isinstance(row, dict):
            raise ApqError(f"it is damaged: 'use_of_limits' holds {row!r}")
        check(row, _OF_A_LIMIT)
