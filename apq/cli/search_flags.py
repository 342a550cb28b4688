"""The flags that `search` and `pareto` share, and what is made of them before a search starts."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from apq.cli import parser as cli
from apq.cli.costs import load_table
from apq.domain import Domain
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.paths import find_in, find_model
from apq.provenance import read_card
from apq.space import PAPER_SPACE
from lut.costs import COSTS
from lut.layers import IMAGENET_CLASSES
from methods.evolution import EvolutionSettings
from methods.guided import GuidedSettings
from methods.modes import DEFAULT_MODE, MODES
from methods.settings import SearchSettings

if TYPE_CHECKING:
    from methods.request import Predictor
    from utils.latency_predictor import LatencyPredictor

# Flag -> the cost that it bounds.
MAXIMA = {f"max_{cost.column}": kind for kind, cost in COSTS.items()}
DEFAULT_RISK = 1.0
# Beyond these, counts and memory run over.
MAX_CLASSES, MAX_POPULATION = 10**7, 10**6
# Flags of search settings; which of them a mode knows, its class of settings tells.
SETTINGS = ("population", "generations", "mutation_prob", "evaluations", "seconds", "patience")


def add_all(parser: cli.Parser) -> None:
    """Add all the flags that searches share, the common ones included."""
    parser.add_argument("--overwrite", action="store_true", help="replace an existing experiment")
    _add_limits(parser)
    _add_engine(parser)
    _add_accuracy(parser)
    _add_domain(parser)
    _add_cost(parser)
    cli.add_common(parser)


def _add_limits(parser: cli.Parser) -> None:
    group = parser.add_argument_group("limits (in any combination)")
    for flag, type_ in MAXIMA.items():
        group.add_argument(
            f"--{flag}",
            type=cli.positive_number,
            metavar="MAX",
            help=f"at most so many {COSTS[type_].unit}",
        )


def _add_cost(parser: cli.Parser) -> None:
    group = parser.add_argument_group("cost")
    group.add_argument(
        "--image_size",
        type=cli.image_size,
        metavar="PX",
        help="image size of the cost; default 224, or that of --lut",
    )
    group.add_argument("--lut", type=Path, metavar="FILE", help="table of layer costs to use")
    group.add_argument(
        "--accounting",
        type=cli.one_of("paper", "full"),
        default="paper",
        help="paper leaves out the first block and the classifier; full counts them",
    )
    group.add_argument(
        "--n_classes",
        type=cli.whole_number(2, MAX_CLASSES),
        default=IMAGENET_CLASSES,
        metavar="N",
        help="outputs of the classifier, where it counts; default %(default)s",
    )


def _add_domain(parser: cli.Parser) -> None:
    group = parser.add_argument_group("what may vary")
    group.add_argument(
        "--freeze",
        type=cli.ListOf(str),
        default=(),
        metavar="PARTS",
        help="architecture, bits, or stage1,stage2,...: as they are in --freeze_from",
    )
    group.add_argument("--freeze_from", type=Path, metavar="EXP_DIR", help="experiment to keep")
    group.add_argument(
        "--exclude_bits", type=cli.ListOf(cli.whole_number(1)), default=(), metavar="4,..."
    )
    group.add_argument(
        "--exclude_kernels", type=cli.ListOf(cli.whole_number(1)), default=(), metavar="7,..."
    )
    group.add_argument(
        "--max_width_ratio",
        type=cli.positive_number,
        metavar="R",
        help="expand blocks to at most R times their input channels (4 to 6)",
    )


def _add_accuracy(parser: cli.Parser) -> None:
    group = parser.add_argument_group("accuracy")
    group.add_argument(
        "--acc_predictor_dir",
        type=cli.ListOf(Path),
        default=(Path("models"),),
        metavar="DIR",
        help="folder of acc_quant.pt, or a file; several, with commas between, are an ensemble",
    )
    group.add_argument(
        "--risk",
        type=cli.number_from_zero,
        metavar="K",
        help="rank by mean - K x spread of an ensemble (the folder's acc_ensemble.pt where one "
        f"folder is given); default {DEFAULT_RISK:g} with several predictors",
    )


def _add_engine(parser: cli.Parser) -> None:
    group = parser.add_argument_group("search")
    group.add_argument(
        "--mode",
        type=cli.one_of(*MODES),
        default=DEFAULT_MODE,
        help=f"{', '.join(MODES)}; default %(default)s",
    )
    group.add_argument(
        "--seconds",
        type=cli.positive_number,
        metavar="S",
        help="end after this time; guided then searches that long unless --evaluations is given",
    )
    group.add_argument(
        "--patience",
        type=cli.whole_number(0),
        metavar="STEPS",
        help="end after so many steps (generations) without improvement; 0: never",
    )
    evolution = {
        "population": cli.whole_number(2, MAX_POPULATION),
        "generations": cli.whole_number(1),
        "mutation_prob": cli.positive_number,
    }
    for name, type_ in evolution.items():
        default = getattr(EvolutionSettings, name)
        group.add_argument(f"--{name}", type=type_, help=f"of evolution; default {default}")
    group.add_argument(
        "--evaluations",
        type=cli.whole_number(1),
        metavar="N",
        help=f"of guided: subnets to look at; default {GuidedSettings.evaluations}",
    )


def limits_of(args: argparse.Namespace) -> dict[str, float]:
    """Return the `--max_*` limits given, by type of cost."""
    return {t: value for f, t in MAXIMA.items() if (value := getattr(args, f)) is not None}


def flag_of(type_: str) -> str:
    """Return the flag that bounds a type of cost."""
    return next(f"--{flag}" for flag, bounded in MAXIMA.items() if bounded == type_)


def cost_models(args: argparse.Namespace) -> dict[str, LatencyPredictor]:
    """Return the model of every type of cost, all of one table and image size."""
    from lut import table as lut_table
    from utils.latency_predictor import LatencyPredictor

    table = load_table(args.lut) if args.lut else None
    image_size = args.image_size or (table.image_size if table else 224)
    table = table or lut_table.for_image_size(image_size)
    return {
        type_: LatencyPredictor(
            type_, image_size, table=table, accounting=args.accounting, n_classes=args.n_classes
        )
        for type_ in COSTS
    }


def domain_of(args: argparse.Namespace) -> Domain:
    """Return what the flags leave to choose from; raises ApqError when that is nothing."""
    from apq import restrictions

    if bool(args.freeze) != (args.freeze_from is not None):
        raise ApqError(
            "--freeze says what stays and --freeze_from the experiment it is taken from: "
            "give both or none"
        )
    domain = Domain.whole(PAPER_SPACE)
    if args.freeze:
        subnet = Experiment.open(args.freeze_from).subnet()
        domain = restrictions.freeze(domain, args.freeze, subnet)
    if args.exclude_bits:
        domain = restrictions.exclude_bits(domain, args.exclude_bits)
    if args.exclude_kernels:
        domain = restrictions.exclude_kernels(domain, args.exclude_kernels)
    if args.max_width_ratio:
        domain = restrictions.limit_width_ratio(domain, args.max_width_ratio)
    return domain


def settings_of(args: argparse.Namespace) -> SearchSettings:
    """Return the mode's settings; raises ApqError on a flag that the mode has no use for."""
    kind = MODES[args.mode].settings
    known = {field.name for field in fields(kind)}
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    for name in given:
        if name not in known:
            having = [mode for mode, engine in MODES.items() if hasattr(engine.settings, name)]
            raise ApqError(f"--{name} has no effect on --mode={args.mode}; {having[0]} takes it")
    if "evaluations" in known - given.keys() and args.seconds:
        given["evaluations"] = 0  # time alone ends it
    return kind(**given, seed=args.seed)


def predictor_of(args: argparse.Namespace, domain: Domain) -> Predictor:
    """Load the accuracy predictor, or several as an ensemble that ranks by a lower bound.

    Raises ApqError when there is none, when `--risk` is given for one alone, or when one knows
    nothing of bits and the domain leaves some to choose.
    """
    from utils.accuracy_predictor import QUANTIZED_NAME
    from utils.devices import pick_device
    from utils.ensemble import ENSEMBLE_NAME, PredictorEnsemble, load_members

    device, members = pick_device(args.device), []
    for given in args.acc_predictor_dir:
        name = QUANTIZED_NAME
        if args.risk is not None and find_model(given / ENSEMBLE_NAME).is_file():
            name = ENSEMBLE_NAME
            _check_ensemble(given)
        loaded = load_members(find_in(given, name), device)
        if not loaded[0].quantized and domain.leaves_bits_open:
            raise ApqError(
                f"{given} knows nothing of bits, so that a search would take the fewest: name "
                f"another (an {QUANTIZED_NAME}) with --acc_predictor_dir, or freeze the bits"
            )
        members += loaded
    if len({member.sha256 for member in members}) < len(args.acc_predictor_dir):
        raise ApqError(
            f"--acc_predictor_dir={','.join(map(str, args.acc_predictor_dir))} names a predictor "
            "twice: it would always agree with itself"
        )
    if len(members) > 1:
        return PredictorEnsemble(members, DEFAULT_RISK if args.risk is None else args.risk)
    if args.risk is not None:
        raise ApqError(
            f"--risk needs several predictors and {args.acc_predictor_dir[0]} has one: name more "
            "with --acc_predictor_dir=a,b or make an ensemble with 'apq predictor --ensemble=5'"
        )
    return members[0]


def _check_ensemble(folder: Path) -> None:
    """Raise ApqError when a folder's ensemble has learned from other pairs than its predictor."""
    from utils.accuracy_predictor import QUANTIZED_NAME
    from utils.ensemble import ENSEMBLE_NAME

    cards = [read_card(find_model(folder / name)) for name in (QUANTIZED_NAME, ENSEMBLE_NAME)]
    for fact in ("pairs_sha256", "searched_sha256"):
        if all(cards) and cards[0].get(fact) != cards[1].get(fact):
            raise ApqError(
                f"{folder / ENSEMBLE_NAME} has learned from other pairs than {QUANTIZED_NAME} "
                f"beside it: make it again with 'apq predictor --ensemble'"
            )
