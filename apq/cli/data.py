"""The flags that pick a data set, and opening what they name."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from apq.cli.parser import Parser, image_size, whole_number

if TYPE_CHECKING:
    from imagenet_codebase.data_providers import DataProvider


def add_data(
    parser: Parser, default: str | None, size_flag: str = "--image_size", trains: bool = False
) -> None:
    """Add the flags; `default` None leaves the choice of the data set to the command."""
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset",
        default=default,
        help=f"digits, cifar10, imagenet or folder; default {default or 'the one trained on'}",
    )
    group.add_argument(
        "--data_dir", type=Path, metavar="DIR", help="where its images are; default dataset/NAME"
    )
    group.add_argument(
        size_flag,
        dest="data_image_size",
        type=image_size,
        metavar="PX",
        help="side of the images; default 64 for digits and CIFAR-10, 224 for others",
    )
    group.add_argument(
        "--n_workers",
        type=whole_number(0),
        default=0,
        metavar="N",
        help="processes that decode images; default 0: every training process decodes its own",
    )
    group.add_argument("--download", action="store_true", help="fetch CIFAR-10 where missing")
    if trains:
        group.add_argument(
            "--randaugment",
            action="store_true",
            help="change training images by RandAugment too: for many epochs",
        )


def open_data(
    args: argparse.Namespace, dataset: str | None = None, image_size: int | None = None
) -> DataProvider:
    """Open the data set of the flags, else the one given; raises ApqError.

    The split into training and validation images never follows `--seed`: a network must not be
    validated on images that the supernet it came from was trained on.
    """
    from imagenet_codebase.data_providers import open_dataset
    from imagenet_codebase.run_manager import distributed

    def opened(download: bool) -> DataProvider:
        return open_dataset(
            args.dataset or dataset,
            root=args.data_dir,
            image_size=args.data_image_size or image_size,
            randaugment=getattr(args, "randaugment", False),
            download=download,
        )

    if args.download:
        distributed.once_a_machine(lambda: opened(download=True))
    return opened(download=False)
