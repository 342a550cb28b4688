"""Where commands find weights: a supernet's, and those of an experiment."""

from __future__ import annotations

import argparse
from pathlib import Path

from apq.cli.parser import Parser, to_type
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.paths import MODELS_DIR, find_model, shipped_models_dir
from apq.provenance import read_card

NAME = "supernet.pth.tar"
SUPERNET, AUTHORS_SUPERNET = MODELS_DIR / NAME, MODELS_DIR / "imagenet-OFA"


def add_supernet(parser: Parser) -> None:
    """Add `--supernet`, None where it is not given."""
    parser.add_argument(
        "--supernet",
        type=Path,
        metavar="FILE",
        help="file of the supernet whose weights are taken; default: models/imagenet-OFA for "
        "ImageNet, else that of the same data among models/supernet.pth.tar, "
        "models/DATASET/supernet.pth.tar and the shipped ones, else models/supernet.pth.tar",
    )


def find_supernet(given: Path | None, dataset: str) -> Path:
    """Return the supernet file to start from: of the data where one is; raises ApqError."""
    if given:
        candidates = [find_model(given)]
    else:
        default, authors = find_model(SUPERNET), find_model(AUTHORS_SUPERNET)
        folders = [MODELS_DIR, MODELS_DIR / dataset]
        if shipped := shipped_models_dir():
            folders += [shipped, shipped / dataset]
        of_data = [f / NAME for f in folders if _is_of(f / NAME, dataset)]
        first = [authors] if dataset == "imagenet" else []
        candidates = [*first, *of_data, default, authors]
    for path in candidates:
        if path.is_file():
            return path
    raise ApqError(f"there is no supernet at {given or SUPERNET}; name one with --supernet FILE")


def _is_of(path: Path, dataset: str) -> bool:
    return path.is_file() and read_card(path).get("dataset") == dataset


def lacks_weights(experiment: Experiment, args: argparse.Namespace) -> str:
    """Say that there is no checkpoint, and what makes one, if finetuning has a name for it."""
    lacks, folder = f"there is no {experiment.best_checkpoint}", experiment.dir.resolve()
    try:
        named = Experiment.path_for(folder.name)
    except ApqError:
        return lacks
    if named.resolve() != folder:
        return lacks
    return f"{lacks}; make it with '{to_type(args, 'quant-aware')} --exp_name={folder.name}'"
