"""`apq test`, `test.py`: what an experiment costs and how accurate it is."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq import files
from apq.cli import parser as cli
from apq.cli.costs import load_table
from apq.cli.data import add_data, open_data
from apq.cli.processes import add_nproc, in_processes
from apq.cli.tables import format_table
from apq.cli.weights import lacks_weights
from apq.errors import ApqError
from apq.experiment import Experiment
from apq.provenance import write_card
from apq.subnet import Subnet
from lut.costs import amount, budget, what_counts
from lut.layers import IMAGENET_CLASSES, PAPER_FIXED_LAYERS

if TYPE_CHECKING:
    import torch

    from imagenet_codebase.data_providers import DataProvider
    from imagenet_codebase.run_manager.evaluate import Accuracy
    from imagenet_codebase.run_manager.finetune import TrainedSubnet
    from lut.table import Table


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(prog=prog, description="Measure an experiment: cost, size, accuracy.")
    parser.add_argument("--exp_dir", type=Path, required=True, help="folder, e.g. exps/test")
    parser.add_argument(
        "--image_size",
        type=cli.image_size,
        metavar="PX",
        help="image size of the cost; default: that of --lut, the search's, or 224",
    )
    parser.add_argument("--lut", type=Path, metavar="FILE", help="table of layer costs to use")
    parser.add_argument(
        "--layers", action="store_true", help="print every layer's cost and its components"
    )
    parser.add_argument(
        "--batch_size", type=cli.whole_number(1), default=256, help="images at a time, each process"
    )
    add_nproc(parser)
    add_data(parser, default=None, size_flag="--data_image_size")
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print cost and size, and the accuracy where a checkpoint and the data exist."""
    experiment = Experiment.open(args.exp_dir)
    experiment.subnet()  # a broken file is told before more processes start
    if not experiment.best_checkpoint.exists():
        args.nproc = 1  # there is nothing to share

    def work(device: torch.device) -> int:
        _measure(experiment, args, device)
        return 0

    return in_processes(args, work)


def _measure(experiment: Experiment, args: argparse.Namespace, device: torch.device) -> None:
    from imagenet_codebase.run_manager import distributed
    from imagenet_codebase.run_manager.finetune import load_trained

    subnet, report = experiment.subnet(), experiment.report()
    table = distributed.from_first(lambda: _table(args, report))
    path = experiment.best_checkpoint
    sha256 = files.sha256(path) if path.is_file() else ""
    trained = load_trained(experiment)
    n_classes = trained.net.n_classes if trained else report.get("n_classes", IMAGENET_CLASSES)
    _print_search(report, table)
    print(f"{experiment.dir}: cost at {table.image_size} px, {n_classes} classes")
    print(format_table(("figure", "value", "unit"), cost_rows(subnet, table, n_classes)))
    if lacking := table.lacking(subnet.space, n_classes):
        print(
            f"note: the table tells no accelerator, and nothing of {', '.join(lacking)}: the whole "
            f"network's latency and energy are unknown"
        )
    if not subnet.quantized:
        print(f"note: the subnet has no bits: its costs are those of {max(subnet.space.bits)} bits")
    if args.layers:
        print(format_layers(subnet, table, n_classes))
    if trained:
        _print_accuracy(experiment, trained, args, device, sha256)
    else:
        print(f"no accuracy: {lacks_weights(experiment, args)}")


def _table(args: argparse.Namespace, report: dict[str, Any]) -> Table:
    """Return the table of costs that the flags name, or the one of the search's image size."""
    from lut import table as lut_table
    from utils.latency_predictor import check_table

    if not args.lut:
        return lut_table.for_image_size(args.image_size or report.get("image_size", 224))
    table = load_table(args.lut)
    check_table(table, args.image_size or table.image_size)
    return table


def _print_search(report: dict[str, Any], table: Table) -> None:
    """Say what the search was asked for, and when its costs were of another table."""
    if not {"type", "unit", "cost", "constraint", "accounting"} <= set(report):
        return  # an authors' folder
    first = {"type": report["type"], "unit": report["unit"], "maximum": report["constraint"]}
    limits = report.get("use_of_limits", [{**first, "cost": report["cost"]}])
    maxima = ", ".join(budget(row["maximum"], row["unit"]) for row in limits)
    costs = ", ".join(f"{row['type']} {amount(row['cost'], row['unit'])}" for row in limits)
    counted = what_counts([row["type"] for row in limits], report["accounting"])
    print(f"searched under {maxima}: {costs} ({counted})")
    if report.get("table_sha256") != table.sha256():
        print(
            "note: the search used another table of costs; name it with --lut, or its --image_size"
        )


def cost_rows(subnet: Subnet, table: Table, n_classes: int) -> list[tuple[str, str, str]]:
    """Return (figure, value, unit) of everything a subnet costs, as far as the table can tell.

    Raises ApqError that names a layer which the table lacks.
    """
    from utils.latency_predictor import LatencyPredictor

    # Bit operations are always the whole network's, and their rows tell all the other figures.
    cost = LatencyPredictor("bitops", table.image_size, subnet.space, table, n_classes=n_classes)
    whole = cost.breakdown(subnet)
    paper = [row for row in whole if row.block or row.name in PAPER_FIXED_LAYERS]
    figures = [
        ("latency", "ms", 3, sum(row.latency_ms for row in paper)),
        ("latency, whole network", "ms", 3, sum(row.latency_ms for row in whole)),
        ("energy", "mJ", 3, sum(row.energy_mj for row in paper)),
        ("energy, whole network", "mJ", 3, sum(row.energy_mj for row in whole)),
        ("BitOps", "G", 2, sum(row.bitops for row in whole) / 1e9),
        ("model size", "MB", 3, sum(row.size_bytes for row in whole) / 1e6),
    ]
    if table.lacking(subnet.space, n_classes):
        del figures[3], figures[1]
    return [(name, f"{value:.{digits}f}", unit) for name, unit, digits, value in figures]


def format_layers(subnet: Subnet, table: Table, n_classes: int) -> str:
    """Return a row for each layer: shape, bits, cost, energy by component.

    Of the whole network, as far as the table can tell.
    """
    from utils.latency_predictor import LatencyPredictor

    accounting = "paper" if table.lacking(subnet.space, n_classes) else "full"
    cost = LatencyPredictor("latency", table.image_size, subnet.space, table, accounting, n_classes)
    rows = cost.breakdown(subnet)
    parts = list(rows[0].components or {})
    headers = ("block", "layer", "shape", "bits", "ms", "mJ", *(f"{p} mJ" for p in parts))
    return format_table(
        [header.replace("_", " ") for header in headers],
        [
            (
                row.block,
                row.name.replace("_", " "),
                row.layer.description,
                f"W{row.w_bits}A{row.a_bits}",
                f"{row.latency_ms:.4f}",
                f"{row.energy_mj:.4f}",
                *(f"{row.components[part]:.4f}" for part in parts),
            )
            for row in rows
        ],
    )


def _print_accuracy(
    experiment: Experiment,
    trained: TrainedSubnet,
    args: argparse.Namespace,
    device: torch.device,
    sha256: str,
) -> None:
    """Measure the weights that had this hash, print the figures and write their card."""
    from elastic_nn.networks.folded import fold
    from imagenet_codebase.run_manager.distributed import is_first
    from imagenet_codebase.run_manager.evaluate import evaluate_split

    dataset = trained.facts.get("dataset", "imagenet")
    try:
        data = open_data(args, dataset, trained.facts.get("image_size"))
    except ApqError as error:
        if args.dataset or args.data_dir:
            raise
        print(f"no accuracy: {error}")
        return
    if data.n_classes != trained.net.n_classes:
        raise ApqError(
            f"{experiment.best_checkpoint} knows {trained.net.n_classes} classes and "
            f"{data.name} has {data.n_classes}: name the right data with --dataset"
        )
    known = trained.facts.get("class_names", list(data.class_names))
    if known != list(data.class_names):
        raise ApqError(
            f"{experiment.best_checkpoint} knows other classes than {data.name}: name the right "
            f"data with --dataset"
        )
    net = fold(trained.net.to(device))
    accuracy = evaluate_split(net, data, "test", args.batch_size, args.n_workers, "test images")
    if not math.isfinite(accuracy.loss):
        raise ApqError(
            f"{experiment.best_checkpoint} is damaged: what it answers is not finite; finetune it "
            f"anew, with --restart"
        )
    of = args.data_dir if data.name == "folder" else data.name
    print(
        f"top-1 {accuracy.top1:.2%}, top-5 {accuracy.top5:.2%} on the {accuracy.n_images} "
        f"test images of {of} at {data.image_size} px"
    )
    if is_first():
        _write_card(experiment.best_checkpoint, sha256, accuracy, data)


def _write_card(path: Path, sha256: str, accuracy: Accuracy, data: DataProvider) -> None:
    """Keep what was measured beside the weights, where one may write; else say so."""
    try:
        if files.sha256(path) != sha256:
            raise ApqError("they were replaced meanwhile")
        write_card(
            path,
            dataset=data.name,
            image_size=data.image_size,
            n_test_images=accuracy.n_images,
            test_top1=accuracy.top1,
            test_top5=accuracy.top5,
        )
    except ApqError as error:
        cli.warn(f"the figures of {path} are not kept: {error}")
