"""`apq pareto`: the best subnet under each of many budgets, in one run."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from apq.cli import front, search_flags, searching
from apq.cli import parser as cli
from apq.errors import ApqError
from apq.experiment import Experiment
from lut.costs import COSTS
from methods import pareto
from methods.problem import Limit, SearchProblem
from methods.sweep import Point, Sweep

if TYPE_CHECKING:
    from apq.domain import Domain
    from utils.latency_predictor import LatencyPredictor

MAX_POINTS = 10_000
DEFAULT_POINTS = (8, 4)  # along one cost; along each of several


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Find the best subnet under each of many budgets: a folder exps/NAME-BUDGET "
        "for each, exps/NAME/front.csv and front.png for all. The same command goes on where "
        "Ctrl-C stopped it, and keeps points that are there.",
    )
    parser.add_argument("--exp_name", required=True, metavar="NAME", help="start of the names")
    parser.add_argument(
        "--type",
        type=cli.ListOf(cli.one_of(*COSTS)),
        default=("latency",),
        metavar="TYPE,...",
        help=f"what is swept: {', '.join(COSTS)}; several give a grid; default latency",
    )
    listed = cli.ListOf(cli.positive_number)
    parser.add_argument(
        "--from", dest="low", type=listed, metavar="MIN", help="default: the cheapest subnet's"
    )
    parser.add_argument(
        "--to", dest="high", type=listed, metavar="MAX", help="default: the most expensive subnet's"
    )
    parser.add_argument(
        "--points",
        type=cli.ListOf(cli.whole_number(1, MAX_POINTS)),
        metavar="N",
        help="budgets in even steps; default {} along one cost, {} along each of several".format(
            *DEFAULT_POINTS
        ),
    )
    parser.add_argument(
        "--budgets",
        type=lambda text: tuple(listed(part) for part in text.split("/")),
        metavar="5,7,9",
        help="these budgets instead; of several types with / between",
    )
    search_flags.add_all(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Search under one budget after another; write the front even when stopped."""
    points = _points(args)
    with contextlib.ExitStack() as held:
        for name in dict.fromkeys([args.exp_name, *(point.request.name for point in points)]):
            held.enter_context(Experiment.claim(name))
        return _run(args, points)


def _run(args: argparse.Namespace, points: list[Point]) -> int:
    front.check_free(args.exp_name, points, args.overwrite)
    possible = [point for point in points if _is_possible(point)]
    if not possible:
        points[-1].request.problem.check()
    for point in possible:
        point.open(args.overwrite)
    sweep = Sweep(points=possible, search=searching.find, tell=cli.warn, overwrite=args.overwrite)
    interrupted = False
    try:
        interrupted = sweep.run()
    finally:
        front.write(args.exp_name, points)
    if interrupted:
        print("stopped; the same command goes on")
    return 130 if interrupted else 0


def _points(args: argparse.Namespace) -> list[Point]:
    """Return every combination of budgets, none before a tighter one."""
    Experiment.path_for(args.exp_name)  # a bad name is told first
    shared = searching.Shared.from_flags(args)
    budgets, fixed = _budgets(args, shared.costs, shared.domain), search_flags.limits_of(args)
    for type_ in budgets:
        if type_ in fixed:
            flag = search_flags.flag_of(type_)
            raise ApqError(f"the {type_} is swept and {flag} bounds it too: leave one of them out")
    points = []
    for combination in pareto.grid(budgets):
        name = "-".join([args.exp_name, *map(_plain, combination.values())])
        points.append(Point(combination, shared.request(name, {**combination, **fixed})))
    return points


def _budgets(
    args: argparse.Namespace, costs: Mapping[str, LatencyPredictor], domain: Domain
) -> dict[str, tuple[float, ...]]:
    """Return the budgets of every swept type."""
    types = tuple(args.type)
    if len(set(types)) < len(types):
        raise ApqError(f"--type={','.join(types)} names a cost twice")
    ends = {"--from": args.low, "--to": args.high, "--points": args.points}
    given = {flag: values for flag, values in ends.items() if values is not None}
    if args.budgets:
        if given:
            raise ApqError(f"--budgets names them all: leave {', '.join(given)} out")
        given = {"--budgets": args.budgets}
    for flag, values in given.items():
        if len(values) != len(types):
            raise ApqError(
                f"{flag} is given for {len(values)} costs and --type={','.join(types)} names "
                f"{len(types)}"
            )
    if args.budgets:
        return dict(zip(types, args.budgets, strict=True))
    default_points = DEFAULT_POINTS[len(types) > 1]
    budgets = {}
    for i, type_ in enumerate(types):
        # Any budget will do to learn the ends of the range.
        problem = SearchProblem(domain.space, np.ones, (Limit(costs[type_], 1.0),), domain)
        low = args.low[i] if args.low else float(problem.minima[0])
        high = args.high[i] if args.high else float(problem.maxima[0])
        n = args.points[i] if args.points else default_points
        if n == 1 and args.high and low < high:
            raise ApqError(
                f"one point cannot reach --to={high:g} from {low:g}: name it by --budgets"
            )
        budgets[type_] = pareto.even_budgets(low, high, n)
    return budgets


def _plain(value: float) -> str:
    """Return a budget as it stands in a name: no exponent, no needless digits."""
    return np.format_float_positional(value, trim="-")


def _is_possible(point: Point) -> bool:
    """Whether some subnet keeps the limits; says why not."""
    try:
        point.request.problem.check()
    except ApqError as error:
        cli.warn(f"{point.request.name} left out: {error}")
        return False
    return True
