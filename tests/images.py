"""Image files to train on, small and easily told apart."""

from pathlib import Path

from PIL import Image


def save_colours(root: Path, n_train: int, n_test: int, n_classes: int = 2) -> None:
    """Write PNG files of 32 pixels, `n_train` and `n_test` for each class, a folder each."""
    for split, n in (("train", n_train), ("test", n_test)):
        for red in range(60, 60 * n_classes + 1, 60):
            folder = root / split / f"red{red}"
            folder.mkdir(parents=True)
            for i in range(n):
                Image.new("RGB", (32, 32), (red, 9 * i, 99)).save(folder / f"{i}.png")
