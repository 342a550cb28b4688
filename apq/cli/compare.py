"""`apq compare`: what a search found against random subnets of the same cost, all finetuned."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq import files
from apq.cli import parser as cli
from apq.cli.data import add_data, open_data
from apq.cli.outputs import check_free, run_folder
from apq.cli.processes import add_nproc, in_processes
from apq.cli.recipe import add_recipe, recipe
from apq.cli.tables import format_table
from apq.cli.weights import find_supernet
from apq.domain import Domain
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.provenance import write_card
from apq.space import PAPER_SPACE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from imagenet_codebase.run_manager.recipes import FinetuneSettings
    from methods.validation.compare import Contest, ContestResult
    from methods.validation.correlate import Correlation
    from utils.latency_predictor import LatencyPredictor

HEADERS = ("experiment", "budget", "searched", "random, mean ± std", "best random", "won")


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Finetune the subnets of experiments, and for each random ones of the same\n"
        "cost, under one recipe; compare them on the test images. An experiment without\n"
        "a checkpoint gets the finetuned weights. Goes on where it was stopped.",
    )
    parser.add_argument(
        "--exp_names",
        type=cli.ListOf(str),
        required=True,
        metavar="A,B,...",
        help="experiments under exps/",
    )
    parser.add_argument(
        "--n_random",
        type=cli.whole_number(1),
        default=8,
        metavar="N",
        help="random subnets for each of them; default %(default)s",
    )
    parser.add_argument(
        "--direct",
        action="store_true",
        help="measure with the supernet's weights, without finetuning: minutes, not hours",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("models/comparison.json"),
        metavar="FILE",
        help="the result; default %(default)s",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a comparison that this run did not make"
    )
    add_nproc(parser)
    add_recipe(parser, {"n_epochs": 1})
    add_data(parser, default="cifar10")
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Finetune all, print the table and write every figure, in as many processes as asked for."""
    contests = [_contest(name) for name in args.exp_names]
    settings = recipe(args)
    return in_processes(args, lambda device: _compare(args, contests, settings, device))


def _compare(
    args: argparse.Namespace,
    contests: list[Contest],
    settings: FinetuneSettings,
    device: torch.device,
) -> int:
    from elastic_nn.networks.files import load_supernet
    from imagenet_codebase.run_manager import distributed
    from imagenet_codebase.run_manager.classes import knows_classes_of
    from methods.validation.bench import DirectBench, FinetuningBench
    from methods.validation.compare import compare

    names = {contest.name for contest in contests}
    distributed.from_first(lambda: _check_free(args.out, names, args.overwrite))
    data = open_data(args)
    supernet = find_supernet(args.supernet, data.name)
    folder = run_folder(args.out)
    net = load_supernet(supernet).net
    # Finetuning may give a subnet other classes; what it knows before then says nothing of them.
    with_direct = args.direct or knows_classes_of(supernet, net.n_classes, data)
    if args.direct:
        bench = DirectBench(supernet, data, folder, device, settings.n_workers)
    else:
        bench = FinetuningBench(supernet, data, settings, folder, device, with_direct)
    results = []
    for result in compare(bench, contests, args.n_random, args.seed):
        if result is None:
            print(f"stopped; the same command goes on from {folder}")
            return 130
        results.append(result)
    if distributed.is_first():
        correlation = _correlation(results) if with_direct and not args.direct else None
        files.write_json(args.out, [_plain(result) for result in results])
        write_card(
            args.out,
            dataset=data.name,
            image_size=data.image_size,
            n_test_images=data.n_images("test"),
            seed=args.seed,
            settings=None if args.direct else asdict(settings),
            supernet_sha256=files.sha256(supernet),
            correlation=correlation and asdict(correlation),
        )
        _tell(results, correlation, args.out)
    return 0


def _tell(results: Sequence[ContestResult], correlation: Correlation | None, out: Path) -> None:
    print(format_table(HEADERS, map(_row, results)))
    if correlation:
        print(correlation)
    print(out)


def _check_free(out: Path, names: set[str], overwrite: bool) -> None:
    """Raise ApqError when a comparison would replace one that tells of other experiments, too."""
    check_free(out, overwrite)
    if not out.exists() or overwrite:
        return
    rows = files.read_json(out)
    rows = rows if isinstance(rows, list) else []
    there = {str(row.get("experiment")) for row in rows if isinstance(row, dict)}
    if others := sorted(there - names):
        raise ApqError(
            f"{out} compares other experiments ({', '.join(others)}): choose another --out, or "
            f"replace it with --overwrite"
        )


def _contest(name: str) -> Contest:
    from methods.validation.compare import Contest
    from utils.latency_predictor import LatencyPredictor

    experiment = Experiment.open(Experiment.path_for(name))
    report = experiment.report()
    missing = {"type", "constraint", "image_size", "accounting"} - set(report)
    if missing:
        raise ApqError(
            f"{experiment.dir} does not tell what it was searched under ({min(missing)} is "
            f"missing): make it with search.py"
        )
    given = {name: report[name] for name in ("accounting", "n_classes") if name in report}
    cost = LatencyPredictor(report["type"], report["image_size"], **given)
    _check_request(experiment, report, cost)
    experiment.subnet()  # a broken file is told before the data are read
    return Contest(experiment=experiment, cost=cost, maximum=report["constraint"])


def _check_request(
    experiment: Experiment, report: Mapping[str, Any], cost: LatencyPredictor
) -> None:
    """Raise ApqError when random subnets under the first limit alone would be no fair rivals."""
    if report.get("table_sha256", cost.table.sha256()) != cost.table.sha256():
        raise ApqError(
            f"{experiment.dir} was searched with a table of costs of its own (--lut): random "
            f"subnets are drawn by the built-in one"
        )
    if len(report.get("limits", {})) > 1:
        raise ApqError(
            f"{experiment.dir} was searched under several limits at once: random subnets are "
            f"drawn under one"
        )
    whole = Domain.whole(PAPER_SPACE).sha256
    if report.get("domain_sha256", whole) != whole:
        cli.warn(f"{experiment.dir} was searched in a part of the space; random subnets know all")


def _correlation(results: Sequence[ContestResult]) -> Correlation | None:
    """Return how direct accuracy ranks the random subnets, None where that cannot be told."""
    from methods.validation.correlate import correlate

    # Two experiments under one budget have the same rivals.
    by_name = {result.contest.rivals: result.rivals for result in results}
    rivals = [rival for of_one in by_name.values() for rival in of_one]
    try:
        return correlate(rivals) if len(rivals) > 1 else None
    except ApqError as error:  # without scipy, or all alike
        cli.warn(str(error))
        return None


def _row(result: ContestResult) -> tuple[str, ...]:
    import numpy as np

    rivals = 100 * np.array([rival.test_top1 for rival in result.rivals])
    contest = result.contest
    return (
        contest.name,
        f"{contest.maximum:g} {contest.cost.unit}",
        f"{result.searched.test_top1:.2%}",
        f"{rivals.mean():.2f} ± {rivals.std():.2f} %",
        f"{rivals.max():.2f} %",
        "yes" if result.won else "no",
    )


def _plain(result: ContestResult) -> dict:
    return {
        "experiment": result.contest.name,
        "arch": result.contest.experiment.subnet().to_json(),
        "type": result.contest.cost.type,
        "constraint": result.contest.maximum,
        "unit": result.contest.cost.unit,
        "searched": asdict(result.searched),
        "random": [
            {"arch": subnet.to_json(), **asdict(rival)}
            for subnet, rival in zip(result.subnets, result.rivals, strict=True)
        ],
    }
