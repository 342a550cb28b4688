"""What each part of the finetuning recipe is worth: the ablation of docs/finetuning.md.

python -m benchmarks.recipes --data_dir DIR --exp_names A,B --out FILE.csv [--only w4a4]
    [--dataset cifar10] [--n_epochs 1] [--epoch_images 15000] [--batch_size 64] [--seeds 3]
    [--rows N,N,...] [--folder DIR]

Every variant finetunes the subnets of the experiments (`searched`) and the same architectures with
4 bits everywhere (`w4a4`), or one of these kinds only; `full precision` is an architecture without
quantization. `--rows` picks variants by their place in the table, from 0. Goes on where it was
stopped.
The figures are test accuracies: mean and standard deviation over the seeds.
`torchrun --nproc_per_node=2 -m benchmarks.recipes ...` shares the work.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apq import files
from apq.cli.outputs import run_folder
from apq.cli.tables import format_table
from apq.cli.weights import find_supernet
from apq.experiment import Experiment
from apq.subnet import Subnet
from imagenet_codebase.data_providers import open_dataset
from imagenet_codebase.run_manager import distributed
from imagenet_codebase.run_manager.recipes import RECIPES, FinetuneSettings
from methods.validation.bench import FinetuningBench
from utils.devices import pick_device

BEST = RECIPES["best"]
FULL = "full precision"


def without(*names: str) -> dict[str, Any]:
    """Return the best recipe less some of its options."""
    return {name: value for name, value in BEST.items() if name not in names}


VARIANTS: dict[str, dict[str, Any]] = {
    FULL: without("quantizer"),
    "paper": {},
    "best": BEST,
    "best, learning rate 0.003": {**BEST, "lr": 0.003},
    "best, paper's quantizer": without("quantizer"),
    "best, lsq for the layer": {**BEST, "quantizer": "lsq"},
    "best, lsq on all levels": {**BEST, "quantizer": "lsq-full"},
    "best, and a teacher": {**BEST, "distill": 0.5},
    "best, and an average": {**BEST, "ema": 0.998},
    "best, fresh batch statistics": {**BEST, "reset_bn": True},
}


def subnets(names: str, only: str | None) -> dict[str, Subnet]:
    """Return each experiment's subnet, and its twin of 4 bits with kernels that allow them."""
    found = {}
    for name in names.split(","):
        subnet = Experiment.open(Experiment.path_for(name.strip())).subnet()
        if only != "w4a4":
            found[name] = subnet
        if only != "searched":
            runnable = replace(subnet, kernels=tuple(min(k, 5) for k in subnet.kernels))
            found[f"{name}-w4a4"] = runnable.with_bits(4)
    return found


def main() -> None:
    """Finetune everything, print the table and write every run's figures."""
    args = parse()
    with distributed.group(pick_device()) as device:
        run(args, device)


def parse() -> argparse.Namespace:
    """Return the flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--exp_names", required=True)
    parser.add_argument("--only", choices=("searched", "w4a4"))
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data_dir", type=Path)
    parser.add_argument("--supernet", type=Path)
    parser.add_argument("--n_epochs", type=int, default=1)
    parser.add_argument("--epoch_images", type=int, default=15_000)
    parser.add_argument("--batch_size", type=int, default=64, help="images a step of each process")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=_rows, help="places of the variants to run, from 0")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="what was measured so far; default OUT.run")
    return parser.parse_args()


def _rows(text: str) -> list[int]:
    rows = [int(row) for row in text.split(",")]
    if not all(0 <= row < len(VARIANTS) for row in rows):
        raise ValueError
    return rows


def run(args: argparse.Namespace, device: torch.device) -> None:
    """Do what `main` says, in one of several processes or alone."""
    data = open_dataset(args.dataset, args.data_dir)
    supernet = find_supernet(args.supernet, data.name)
    folder = args.folder or run_folder(args.out)
    todo = subnets(args.exp_names, args.only)
    numbered = [*enumerate(VARIANTS.items())]
    variants = [numbered[row] for row in args.rows] if args.rows else numbered
    results: dict[tuple[str, str], list[float]] = {}
    for seed in range(args.seeds):
        for number, (variant, options) in variants:
            settings = FinetuneSettings(
                **options,
                n_epochs=args.n_epochs,
                epoch_images=args.epoch_images,
                batch_size=args.batch_size,
                seed=seed,
                compile=True,
            )
            own = folder / f"{number}-{seed}"
            bench = FinetuningBench(supernet, data, settings, own, device, with_direct=False)
            for name, subnet in todo.items():
                subnet = subnet.full_precision() if variant == FULL else subnet
                outcome = bench.measure(name, subnet)
                if outcome is None:
                    print(f"stopped; the same command goes on from {folder}")
                    return
                results.setdefault((variant, name), []).append(100 * outcome.test_top1)
    if not distributed.is_first():
        return
    lines = ["variant,subnet,seed,test_top1"]
    for (variant, name), values in results.items():
        lines += [f'"{variant}",{name},{seed},{v:.2f}' for seed, v in enumerate(values)]
    files.write_text(args.out, "\n".join(lines) + "\n")
    rows = [
        (
            variant,
            *(f"{np.mean(v):.2f} ± {np.std(v):.2f}" for v in (results[variant, n] for n in todo)),
        )
        for _, (variant, _) in variants
    ]
    print(format_table(("recipe", *todo), rows))


if __name__ == "__main__":
    main()
