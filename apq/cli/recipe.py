"""The flags of a finetuning recipe, and the settings they make."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from apq.cli import parser as cli
from apq.cli.weights import add_supernet
from elastic_nn.quantizer_kinds import QUANTIZERS
from imagenet_codebase.run_manager.recipes import RECIPES, FinetuneSettings
from imagenet_codebase.run_manager.settings import OPTIMIZERS

FLAGS = (
    ("n_epochs", cli.whole_number(1), "passes over the training images"),
    (
        "epoch_images",
        cli.whole_number(0),
        "training images of an epoch, in whole batches, others each time; 0: all",
    ),
    ("batch_size", cli.whole_number(2), "images a step of each process"),
    ("optimizer", cli.one_of(*OPTIMIZERS), " or ".join(OPTIMIZERS)),
    ("lr", cli.positive_number, "learning rate at the start of the cosine"),
    ("momentum", float, "of the gradient's running mean"),
    ("weight_decay", float, "of filters only"),
    ("label_smoothing", float, "share of the labels that is spread over all classes"),
    ("warmup_epochs", float, "epochs over which the learning rate rises from zero"),
    (
        "grad_clip",
        float,
        "largest norm of the weights' gradient and of the ranges'; 0: no clipping",
    ),
    ("quantizer", cli.one_of(*QUANTIZERS), ", ".join(QUANTIZERS)),
    ("distill", float, "share of the loss from the supernet's largest subnet"),
    ("ema", float, "decay per step of the averaged weights that are kept; 0: none"),
    ("save_every", cli.whole_number(0), "steps between saves, besides; 0: by time alone"),
    ("save_every_s", cli.positive_number, "seconds between saves"),
)
SWITCHES = (
    ("reset_bn", "take batch statistics anew before each validation"),
    ("bf16", "run convolutions in bfloat16"),
    ("compile", "run the quantizers' passes as compiled loops; default: in runs of 500 steps on"),
    ("sync_bn", "take batch statistics over the images of all processes"),
    ("scale_lr", "multiply --lr by the number of processes; without it, it is as given"),
)


def add_recipe(parser: cli.Parser, defaults: Mapping[str, Any] | None = None) -> None:
    """Add the flags and `--supernet`, the weights to start from.

    A flag that is not given takes the value of `defaults`, else of the chosen recipe.
    """
    add_supernet(parser)
    parser.set_defaults(recipe_defaults=dict(defaults or {}))
    group = parser.add_argument_group("recipe")
    group.add_argument(
        "--recipe",
        type=cli.one_of(*RECIPES),
        default="paper",
        help=f"{' or '.join(RECIPES)}: what holds where a flag below is not given",
    )
    for name, type_, help_ in FLAGS:
        shown = f"{help_}; {_default_text(name, defaults or {})}"
        group.add_argument(f"--{name}", type=type_, metavar=name.split("_")[-1].upper(), help=shown)
    for name, help_ in SWITCHES:
        group.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=help_)


def _default_text(name: str, defaults: Mapping[str, Any]) -> str:
    """Return what a flag is where it is not given: one value, or one for each recipe."""
    own = vars(FinetuneSettings())[name]
    by_recipe = {key: {**options, **defaults}.get(name, own) for key, options in RECIPES.items()}
    if len(set(by_recipe.values())) == 1:
        return f"default {defaults.get(name, own)}"
    return ", ".join(f"{key}: {value}" for key, value in by_recipe.items())


def recipe(args: argparse.Namespace) -> FinetuneSettings:
    """Return the settings of the flags; raises ApqError on a value out of range."""
    chosen = {**RECIPES[args.recipe], **args.recipe_defaults}
    for name in FinetuneSettings.__dataclass_fields__:
        if getattr(args, name) is not None:
            chosen[name] = getattr(args, name)
    return FinetuneSettings(**chosen)
