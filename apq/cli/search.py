"""`apq search`, `search.py`: find the most accurate subnet within a budget."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apq.cli import parser as cli
from apq.cli.tables import format_table
from apq.experiment import Experiment
from apq.paths import find_model
from apq.progress import Counter
from apq.provenance import provenance
from methods.evolution import EvolutionSettings, check_constraint

if TYPE_CHECKING:
    from methods.find import Found
    from utils.accuracy_predictor import AccuracyPredictor
    from utils.latency_predictor import LatencyPredictor

MODES = ("evolution",)


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser; the search's defaults are the paper's."""
    parser = cli.Parser(
        prog=prog, description="Find the most accurate subnet under a latency or energy budget."
    )
    parser.add_argument("--exp_name", required=True, help="name of the folder made under exps/")
    parser.add_argument(
        "--constraint", type=cli.positive_number, required=True, help="the budget, in ms or mJ"
    )
    parser.add_argument(
        "--type",
        type=cli.one_of("latency", "energy"),
        default="latency",
        help="latency (ms) or energy (mJ); default %(default)s",
    )
    parser.add_argument("--mode", type=cli.one_of(*MODES), default="evolution", help="evolution")
    parser.add_argument(
        "--acc_predictor_dir", type=Path, default=Path("models"), help="folder of acc_quant.pt"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing experiment")
    group = parser.add_argument_group("cost")
    group.add_argument(
        "--image_size",
        type=cli.whole_number(32),
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
    group = parser.add_argument_group("evolution")
    group.add_argument(
        "--population", type=cli.whole_number(4), default=EvolutionSettings.population
    )
    group.add_argument(
        "--generations", type=cli.whole_number(1), default=EvolutionSettings.generations
    )
    group.add_argument(
        "--mutation_prob", type=cli.positive_number, default=EvolutionSettings.mutation_prob
    )
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Search, save the experiment, print the winner."""
    from lut import table as lut_table
    from methods.find import find_subnet
    from utils.latency_predictor import LatencyPredictor

    settings = EvolutionSettings(
        population=args.population,
        generations=args.generations,
        mutation_prob=args.mutation_prob,
        seed=args.seed,
    )
    table = lut_table.load(args.lut) if args.lut else None
    image_size = args.image_size or (table.image_size if table else 224)
    cost = LatencyPredictor(args.type, image_size, table=table, accounting=args.accounting)
    accuracy = _load_predictor(args)
    note = check_constraint(args.constraint, cost)
    if note:
        cli.warn(note)
    Experiment.check_free(args.exp_name, overwrite=args.overwrite)
    bar = Counter(f"searching under {args.constraint:g} {cost.unit}", settings.generations)
    found = find_subnet(
        accuracy,
        cost,
        args.constraint,
        settings,
        on_generation=lambda record: bar.step(f"{record.best_accuracy:.2%}"),
    )
    bar.close()
    print(format_found(found, cost, accuracy.card))  # first: a full disk must not lose it
    report = _report(args, found, cost, accuracy)
    name = args.exp_name
    if found.result.interrupted and Experiment.path_for(name).exists():
        name += ".stopped"  # half a search does not replace a whole experiment
    experiment = Experiment.create(name, found.subnet, found.cost, report, overwrite=args.overwrite)
    print(
        f"saved {experiment.dir}; next: python quant_aware.py --exp_name={name}, "
        f"then python test.py --exp_dir={experiment.dir}"
    )
    return 130 if found.result.interrupted else 0


def _load_predictor(args: argparse.Namespace) -> AccuracyPredictor:
    from imagenet_codebase.run_manager.evaluate import pick_device
    from utils.accuracy_predictor import QUANTIZED_NAME, AccuracyPredictor

    given = args.acc_predictor_dir
    file = find_model(given / QUANTIZED_NAME)  # falls back on the shipped one for `models/` alone
    return AccuracyPredictor.load(file if file.is_file() else given, pick_device(args.device))


def _report(
    args: argparse.Namespace, found: Found, cost: LatencyPredictor, accuracy: AccuracyPredictor
) -> dict[str, Any]:
    """Return what `search.json` says of the run."""
    return {
        "mode": args.mode,
        "type": cost.type,
        "unit": cost.unit,
        "constraint": args.constraint,
        "cost": found.cost,
        "image_size": cost.image_size,
        "accounting": cost.accounting,
        "predicted_accuracy": found.accuracy,
        "predictor": accuracy.card,
        "predictor_sha256": accuracy.sha256,
        "table_sha256": cost.table.sha256(),
        "settings": asdict(found.settings),
        "n_evaluated": found.result.n_evaluated,
        "seconds": round(found.result.seconds, 3),
        "interrupted": found.result.interrupted,
        **provenance(),
    }


def format_found(found: Found, cost: LatencyPredictor, card: dict[str, Any]) -> str:
    """Return the winner as text: a row a block, totals, and where the accuracy comes from."""
    lines = [format_table(HEADERS, list(_rows(found, cost))), ""]
    result, value = found.result, f"{found.cost:.3f} {cost.unit}"
    lines.append(
        f"{cost.type} {value} of {found.constraint:g} {cost.unit} at {cost.image_size} px "
        f"({cost.accounting} accounting); {result.n_evaluated:,} subnets in {result.seconds:.1f} s"
    )
    if result.interrupted:
        lines.append("stopped early: this is the best so far")
    dataset, trained_at = card.get("dataset"), card.get("image_size")
    origin = f"learned on {dataset} at {trained_at} px" if dataset else "of unknown origin"
    quality = card.get("figures", {}).get("quantized, by transfer", {}).get("rmse")
    error = f", off by {quality:.1f} points on subnets held out" if quality else ""
    # The network's output is not bound to 100 %, where a search likes to go.
    lines.append(f"predicted accuracy {min(found.accuracy, 1.0):.2%}, {origin}{error}")
    if dataset and trained_at != cost.image_size:
        lines.append(
            f"note: the accuracy was learned at {trained_at} px and the cost is at "
            f"{cost.image_size} px; --image_size={trained_at} searches both at one size"
        )
    return "\n".join(lines)


HEADERS = ("block", "kernel", "width", "pw bits", "dw bits", "ms", "mJ")


def _rows(found: Found, cost: LatencyPredictor) -> Any:
    """Yield the table's rows: the fixed layers, each block, the total."""
    subnet, blocks = found.subnet, {}
    for row in cost.breakdown(subnet):
        blocks.setdefault(row.block or row.name, []).append(row)
    totals = [0.0, 0.0]
    for key, rows in blocks.items():
        figures = [sum(r.latency_ms for r in rows), sum(r.energy_mj for r in rows)]
        totals = [t + f for t, f in zip(totals, figures, strict=True)]
        shown = [f"{f:.3f}" for f in figures]
        if isinstance(key, str):
            bits = f"W{rows[0].w_bits}A{rows[0].a_bits}"
            is_depthwise = "depthwise" in key
            kernel = f"{rows[0].kernel}x{rows[0].kernel}"
            yield (key, kernel, None, *((None, bits) if is_depthwise else (bits, None)), *shown)
        else:
            i = key - 1
            kernel = f"{subnet.kernels[i]}x{subnet.kernels[i]}"
            pw = f"W{subnet.pw_w_bits[i]}A{subnet.pw_a_bits[i]}"
            dw = f"W{subnet.dw_w_bits[i]}A{subnet.dw_a_bits[i]}"
            yield (f"{_name(subnet, i)}", kernel, subnet.widths[i], pw, dw, *shown)
    yield ("total", None, None, None, None, *(f"{t:.3f}" for t in totals))


def _name(subnet: Any, index: int) -> str:
    block = subnet.space.blocks[index]
    return f"stage {block.stage + 1}, block {block.position + 1}"
