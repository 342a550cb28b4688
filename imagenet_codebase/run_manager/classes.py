"""Whether a supernet knows the classes of a data set."""

from __future__ import annotations

from pathlib import Path

from apq.errors import ApqError
from apq.provenance import read_card
from imagenet_codebase.data_providers import DataProvider


def knows_classes_of(supernet: Path, n_classes: int, data: DataProvider) -> bool:
    """Whether a supernet's `n_classes` classes are those of the data, as far as its card tells."""
    card = read_card(supernet)
    if n_classes != data.n_classes:
        return False
    if "class_names" in card:
        return card["class_names"] == list(data.class_names)
    return card.get("dataset", data.name) == data.name


def check_classes(supernet: Path, n_classes: int, data: DataProvider, remedy: str) -> None:
    """Raise ApqError, with the remedy, unless a supernet knows the classes of the data."""
    if not knows_classes_of(supernet, n_classes, data):
        dataset = read_card(supernet).get("dataset")
        of = f" of {dataset}" if isinstance(dataset, str) else ""
        raise ApqError(
            f"{supernet} knows other classes ({n_classes}{of}) than {data.name} "
            f"({data.n_classes}): {remedy}"
        )
    if not read_card(supernet):
        print(f"note: {supernet} has no card: that it knows the classes of {data.name} is assumed")
