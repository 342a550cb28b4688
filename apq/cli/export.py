"""`apq export`: an experiment's finetuned network as an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path

from apq import files
from apq.cli import parser as cli
from apq.cli.weights import lacks_weights
from apq.errors import ApqError
from apq.experiment import Experiment


def make_parser(prog: str) -> cli.Parser:
    """Return the command's parser."""
    parser = cli.Parser(
        prog=prog,
        description="Write an experiment's finetuned network as an ONNX file: pixels to logits,\n"
        "weights and the inputs of layers as integers, with what their steps are worth.",
    )
    parser.add_argument("--exp_dir", type=Path, required=True, help="folder, e.g. exps/test")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the file to write; default: net.onnx in the experiment's folder",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    cli.add_common(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Write the file, and print what goes into the network and comes out of it."""
    from elastic_nn.networks.onnx_model import INPUT, OUTPUT, to_onnx
    from imagenet_codebase.data_providers import DATASETS
    from imagenet_codebase.run_manager.finetune import load_trained

    experiment = Experiment.open(args.exp_dir)
    out = args.out or experiment.dir / "net.onnx"
    files.check_writable(out)
    if out.exists() and not args.overwrite:
        raise ApqError(f"{out} exists: choose another --out, or replace it with --overwrite")
    trained = load_trained(experiment)
    if trained is None:
        raise ApqError(lacks_weights(experiment, args))
    # The authors' files tell nothing of their data, which were ImageNet's.
    dataset = trained.facts.get("dataset", "imagenet")
    defaults = DATASETS.get(dataset, DATASETS["folder"])
    size = trained.facts.get("image_size", defaults.image_size)
    facts = {"dataset": dataset, "weights_sha256": files.sha256(experiment.best_checkpoint)}
    if names := trained.facts.get("class_names"):
        facts["class_names"] = names
    pixels = defaults.normalization
    content = to_onnx(trained.net, size, pixels.mean, pixels.std, facts).SerializeToString()
    files.write_bytes(out, content)
    print(
        f"{INPUT}: uint8 (N, 3, {size}, {size}), red, green and blue, of images prepared as those "
        f"of {dataset}; {OUTPUT}: float32 (N, {trained.net.n_classes})"
    )
    print(f"{len(content) / 1e6:.3f} MB: {out}")
    return 0
