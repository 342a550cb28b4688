"""Folders of images: `train/<class>/*.jpg` beside `val` and `test` folders of the same classes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
from PIL import Image, UnidentifiedImageError

from apq.errors import ApqError
from imagenet_codebase.data_providers.splits import ImageSource, OpenedSplits, Split

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
"""What Pillow raises over damaged files."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageTree:
    """The files of `folder/<class>/...`, listed but not opened."""

    folder: Path
    class_names: tuple[str, ...]
    names: np.ndarray
    """Paths below the class folder, bytes (N,): a million Python strings would take far more."""
    labels: np.ndarray
    """Classes (N,) int64."""

    def path(self, index: int) -> Path:
        """Return where an image lies."""
        return self.folder / self.class_names[self.labels[index]] / os.fsdecode(self.names[index])

    def open(self, index: int) -> Image.Image:
        """Decode one image to RGB; raises ApqError that names a file that is no sound image."""
        path = self.path(index)
        try:
            with Image.open(path) as image:
                image.load()
                return image if image.mode == "RGB" else _eight_bits(image).convert("RGB")
        except UnidentifiedImageError:
            reason = "it is no image, or its beginning is damaged"
        except UNREADABLE as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ApqError(
            f"cannot read the image {path} ({reason}): replace it; "
            "without it, runs that were begun with it cannot go on"
        )


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of 8 bits a channel, to which Pillow would clip; raises ValueError."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):  # what its white is, nothing tells
        raise ValueError("its channels have more than 8 bits")
    return image


def list_tree(folder: Path) -> ImageTree:
    """List a folder of class folders, in alphabetical order.

    Raises ApqError when there is no class folder, or one without images.
    """
    class_names = _class_folders(folder)
    if not class_names:
        raise ApqError(f"{folder} has no class folders: images go to {folder}/<class>/*.jpg")
    names, labels = [], []
    for label, class_name in enumerate(class_names):
        found = _images_below(folder / class_name)
        if not found:
            raise ApqError(
                f"the class folder {folder / class_name} holds no images: fill or remove it"
            )
        names += found
        labels += [label] * len(found)
    return ImageTree(
        folder=folder, class_names=class_names, names=np.array(names), labels=np.array(labels)
    )


def _class_folders(folder: Path) -> tuple[str, ...]:
    try:
        with os.scandir(folder) as entries:
            return tuple(
                sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
            )
    except OSError as error:
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise ApqError(f"cannot list {error.filename}: {error.strerror}") from None


def _images_below(folder: Path) -> list[bytes]:
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        if (real := os.path.realpath(place)) in seen:
            folders.clear()  # a link to where we have been
            continue
        seen.add(real)
        below = os.path.relpath(place, folder)
        found += [
            os.fsencode(os.path.normpath(os.path.join(below, name)))
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        ]
    return sorted(found)


def find_folders(root: Path, val_is_test: bool) -> dict[str, Path]:
    """Return the folders by what they are used for: `train`, `test` and maybe `val`.

    With both `val` and `test`, each is what its name says; one alone is the test split, and so is
    `val` whenever `val_is_test`. Raises ApqError that says what is missing.
    """
    train, val, test = (root / name for name in ("train", "val", "test"))
    if not train.is_dir():
        raise ApqError(f"there is no folder {train}: training images go to {train}/<class>/*.jpg")
    if val.is_dir() and test.is_dir() and not val_is_test:
        return {"train": train, "val": val, "test": test}
    for folder in (val,) if val_is_test else (val, test):
        if folder.is_dir():
            return {"train": train, "test": folder}
    wanted = val if val_is_test else test
    raise ApqError(f"there is no folder {wanted}: images to test with go to {wanted}/<class>/*.jpg")


def open_tree(
    root: Path, source_of: Callable[[ImageTree], ImageSource], val_is_test: bool = False
) -> OpenedSplits:
    """List the folders below `root`; raises ApqError, also when their classes differ."""
    trees = {use: list_tree(folder) for use, folder in find_folders(root, val_is_test).items()}
    train = trees["train"]
    for tree in trees.values():
        differing = sorted(set(train.class_names) ^ set(tree.class_names))
        if differing:
            raise ApqError(
                f"{train.folder} and {tree.folder} have different class folders: "
                f"'{differing[0]}' is in one of them only"
            )
    if len(train.class_names) < 2:
        raise ApqError(
            f"{train.folder} has one class folder, '{train.class_names[0]}': there is nothing to "
            f"tell apart"
        )
    splits = {
        use: Split(source=source_of(tree), indices=np.arange(len(tree.labels)))
        for use, tree in trees.items()
    }
    return OpenedSplits(
        class_names=train.class_names,
        train=splits["train"],
        val=splits.get("val"),
        test=splits["test"],
    )
