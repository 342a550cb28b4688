"""Measured (subnet, accuracy) pairs: the paper's JSON file, and a log that survives a kill."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Container, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from apq import files
from apq.errors import ApqError
from apq.lock import Lock
from apq.provenance import figure_of, read_card, write_card
from apq.space import PAPER_SPACE, SearchSpace
from apq.subnet import Subnet

NONE: Mapping[str, Any] = MappingProxyType({})
IMAGE_DIGESTS = ("train_images", "val_images")
"""Facts that tell one folder's images from another's; files of older versions lack them."""
ALWAYS_SO = {"n_draws": 1, "disputed": False}
"""Facts that files of older versions do not tell, since there was nothing else."""


def read_pairs(path: str | Path, space: SearchSpace = PAPER_SPACE) -> dict[Subnet, float]:
    """Read pairs: subnet -> accuracy in %.

    Raises ApqError that names the wrong entry, be it a subnet that was there before, in the same
    spelling or in another one.
    """
    content = files.read_json(path)
    if not isinstance(content, dict):
        raise ApqError(f"{path} holds no pairs: expected a JSON object of arch -> accuracy in %")
    pairs: dict[Subnet, float] = {}
    for number, (key, accuracy) in enumerate(content.items(), start=1):
        with files.naming(f"{path}, pair {number}"):
            _check_accuracy(accuracy)
            subnet = Subnet.from_json(key, space)
            if subnet in pairs:
                raise ApqError("the subnet is there twice; remove one of the two")
            pairs[subnet] = float(accuracy)
    return pairs


def write_pairs(path: str | Path, pairs: Mapping[Subnet, float]) -> None:
    """Write pairs in the paper's format, one a line, atomically."""
    lines = (f"{json.dumps(s.to_json())}: {json.dumps(a)}" for s, a in pairs.items())
    files.write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def searched_path(path: Path) -> Path:
    """Return where the pairs from searches lie that belong to the random ones of `path`."""
    return path.with_name(f"{path.stem}-searched{path.suffix}")


def precise_path(path: Path) -> Path:
    """Return where some of the subnets of `path` lie, measured more precisely."""
    return path.with_name(f"{path.stem}-precise{path.suffix}")


def fact_of(card: Mapping[str, Any], name: str) -> Any:
    """Return what a card says of how pairs were measured; "unknown" where it does not."""
    return card.get(name, ALWAYS_SO.get(name, "unknown"))


def split_pairs(
    pairs: Mapping[Subnet, float],
) -> tuple[dict[Subnet, float], dict[Subnet, float]]:
    """Return the full-precision and the quantized pairs."""
    full = {s: a for s, a in pairs.items() if not s.quantized}
    return full, {s: a for s, a in pairs.items() if s.quantized}


def hold_out(
    pairs: Mapping[Subnet, float], share: float, seed: int, first: Container[Subnet] = ()
) -> tuple[dict[Subnet, float], dict[Subnet, float]]:
    """Split pairs at random into those to train on and a share, two or more, to judge by.

    Subnets that `first` contains are judged by in any case, however many they are.
    """
    items = list(pairs.items())
    order = np.random.default_rng(seed).permutation(len(items))
    judged_by = np.array([items[i][0] in first for i in order], dtype=bool)
    order = order[np.argsort(~judged_by, kind="stable")]
    n_held_out = max(2, round(share * len(items)), int(judged_by.sum()))
    held_out, train = order[:n_held_out], order[n_held_out:]
    return dict(map(items.__getitem__, train)), dict(map(items.__getitem__, held_out))


def as_arrays(pairs: Mapping[Subnet, float], space: SearchSpace) -> tuple[np.ndarray, np.ndarray]:
    """Return genes (N, n_genes) and accuracies (N,) in 0..1."""
    return space.encode(pairs), np.array(list(pairs.values())) / 100


class PairLog:
    """Pairs measured so far: the finished file with its card, plus a log with one line each.

    A kill loses at most the line being written, which is then dropped. The log's first line and
    the card tell what measured the pairs (`facts`, plain values); pairs of other facts are never
    mixed in: ApqError. The log is held meanwhile: two processes would measure the same subnets.
    """

    def __init__(
        self, path: str | Path, facts: dict[str, Any], space: SearchSpace = PAPER_SPACE
    ) -> None:
        """Read what is there; other processes are kept away until `close`."""
        self.path, self.log_path, self.facts = Path(path), Path(f"{path}.log"), facts
        self.pairs: dict[Subnet, float] = {}
        self.written: set[Subnet] = set()
        """Those in a finished file with a card, which knows of no others."""
        self._lock = Lock(self.log_path, "measures pairs into")
        self._lock.acquire()
        try:
            known = _cut_to_whole_lines(self.log_path)
            if self.path.exists():
                # A kill between file and card leaves the log, and with it what measured the pairs.
                card = read_card(self.path)
                if card or not known:
                    self._check_facts(self.path, card)
                self.pairs = read_pairs(path, space)
                self.written = set(self.pairs) if card else set()
            if known:
                self._read_log(known, space)
            else:
                self._write(facts)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let others measure; what has been measured stays, for them to go on from."""
        with contextlib.suppress(OSError):
            if not self.log_path.stat().st_size:
                self.log_path.unlink()
        self._lock.release()

    def _check_facts(self, path: Path, known: dict[str, Any]) -> None:
        for name, value in self.facts.items():
            if name not in known and name in IMAGE_DIGESTS:
                continue
            if (was := fact_of(known, name)) != value:
                raise ApqError(
                    f"{path} was measured with {name} {was}, not {value}: choose another --out, or "
                    f"remove the file"
                )

    def _read_log(self, lines: list[str], space: SearchSpace) -> None:
        with files.naming(f"{self.log_path}, line 1"):
            known = _parse(lines[0])
            if not isinstance(known, dict):
                raise ApqError("it does not tell what measured the pairs; remove the file")
        self._check_facts(self.log_path, known)
        for number, line in enumerate(lines[1:], start=2):
            with files.naming(f"{self.log_path}, line {number}"):
                pair = _parse(line)
                if not isinstance(pair, list) or len(pair) != 2:
                    raise ApqError("not a pair; remove the line to go on")
                _check_accuracy(pair[1])
                self.pairs[Subnet.from_json(pair[0], space)] = float(pair[1])

    def add(self, subnet: Subnet, accuracy: float) -> None:
        """Record one pair, accuracy in %; it is on disk when this returns."""
        self._write([subnet.to_json(), accuracy])
        self.pairs[subnet] = accuracy

    def _write(self, value: Any) -> None:
        try:
            with open(self.log_path, "a", encoding="utf-8") as log:
                log.write(json.dumps(value) + "\n")
                log.flush()
                os.fsync(log.fileno())
        except OSError as error:
            raise ApqError(f"cannot write {self.log_path}: {error.strerror}") from None

    def finish(
        self, minutes: float, kept: Mapping[str, Any] = NONE, new: Mapping[str, Any] = NONE
    ) -> None:
        """Write the paper's file and its card, then drop the log.

        The card holds the figures that are `kept` of the one before and those that are `new`;
        `minutes` of this sitting are added to those of the earlier ones. Where neither pairs nor
        figures are new both files stay as they are, and still tell which command made them.
        """
        if new or len(self.pairs) > len(self.written) or not self.written:
            minutes += figure_of(read_card(self.path), "minutes") or 0
            write_pairs(self.path, self.pairs)
            full, quantized = split_pairs(self.pairs)
            counts = {"n_full": len(full), "n_quantized": len(quantized)}
            figures = {**kept, **new, "minutes": round(minutes, 1)}
            write_card(self.path, **self.facts, **counts, **figures)
        self.log_path.unlink(missing_ok=True)


def _cut_to_whole_lines(path: Path) -> list[str]:
    """Drop a last line that a kill cut short, in place, and return the others."""
    whole, _, rest = files.read_text(path).rpartition("\n")
    if rest:
        os.truncate(path, path.stat().st_size - len(rest.encode()))
    return whole.splitlines()


def _parse(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _check_accuracy(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ApqError(f"the accuracy is {value!r}; it must be a number from 0 to 100")
