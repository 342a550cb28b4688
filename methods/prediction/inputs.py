"""The measured pairs that predictors are made from, and what their cards say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apq import files
from apq.errors import ApqError
from apq.paths import find_model
from apq.provenance import read_card
from apq.subnet import Subnet
from methods.prediction.cards import LAST_ROUND
from methods.prediction.pairs import fact_of, precise_path, read_pairs, searched_path, split_pairs

MIN_SEARCHED = 5
MEASURED_ALIKE = (
    "supernet_sha256",
    "dataset",
    "image_size",
    "n_images",
    "n_bn_images",
    "n_draws",
    "disputed",
    "own_images",
    "seed",
)
# A precise accuracy is of the same thing, measured with more images.
MEASURED_OF = ("supernet_sha256", "dataset", "image_size")


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Accuracies in % of random, searched and more precisely measured subnets."""

    full: dict[Subnet, float]
    quantized: dict[Subnet, float]
    searched: dict[Subnet, float]
    precise: dict[Subnet, float]
    source: dict[str, Any]
    """The card of the random pairs."""
    precise_source: dict[str, Any]
    """That of the more precise ones; empty where there are none."""
    last_round: Any
    """What that of the searched ones tells of the last search; None where it does not."""
    hashes: dict[str, str]
    notes: tuple[str, ...]
    """What was left out, and why."""

    @property
    def dataset(self) -> str:
        """Data set of the pairs, as far as their card tells."""
        return self.source.get("dataset", "unknown")

    @property
    def image_size(self) -> int:
        """Side of its images; that of the paper where the card does not tell."""
        return self.source.get("image_size", 224)


def read_inputs(pairs: Path, searched: Path | None = None, precise: Path | None = None) -> Inputs:
    """Read random pairs and, from the files named or those beside them, the other kinds.

    Raises ApqError when a file is missing or damaged, or was measured otherwise than the first.
    """
    path, notes = find_model(pairs), []
    full, quantized = split_pairs(read_pairs(path))
    hashes = {"pairs_sha256": files.sha256(path)}
    from_searches = _given_or_beside(searched, searched_path(path))
    found = _read_alike(from_searches, path, MEASURED_ALIKE) if from_searches else {}
    if from_searches and len(found) < MIN_SEARCHED:
        notes.append(f"{from_searches} holds {len(found)} pairs: too few to learn from, left out")
        found = {}
    if found:
        hashes["searched_sha256"] = files.sha256(from_searches)
    precisely = _given_or_beside(precise, precise_path(path))
    judges = _read_alike(precisely, path, MEASURED_OF) if precisely else {}
    if precisely and not judges:
        notes.append(f"{precisely} holds no pairs to judge by")
    if judges:
        hashes["precise_sha256"] = files.sha256(precisely)
    return Inputs(
        full=full,
        quantized=quantized,
        searched=found,
        precise=judges,
        source=read_card(path),
        precise_source=read_card(precisely) if judges else {},
        last_round=read_card(from_searches).get(LAST_ROUND) if found else None,
        hashes=hashes,
        notes=tuple(notes),
    )


def _given_or_beside(given: Path | None, beside: Path) -> Path | None:
    """Return the file that a flag names, or the one that lies there; None without either."""
    return find_model(given) if given else beside if beside.exists() else None


def _read_alike(path: Path, pairs: Path, facts: Sequence[str]) -> dict[Subnet, float]:
    """Return the pairs of a file whose card agrees with that of the random ones on all facts.

    Raises ApqError when it does not.
    """
    read, cards = read_pairs(path), (read_card(path), read_card(pairs))
    for name in facts:
        own, other = (fact_of(card, name) for card in cards)
        if own != other:
            raise ApqError(
                f"{path} was measured with {name} {own}, {pairs} with {other}: measure one of "
                f"them again, or move it away"
            )
    return read
