"""The encoder, by hand, by property and by oracle."""

import json

import numpy as np
import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE, SearchSpace, Stage
from apq.subnet import Subnet
from utils.converter import Converter


@pytest.fixture
def toy() -> SearchSpace:
    """Two stages, three blocks; 4 channels in and a step of 4, so 3 widths in every block."""
    return SearchSpace(
        first_block_channels=4,
        stages=(
            Stage(out_channels=4, stride=1, max_depth=2, depths=(1, 2)),
            Stage(out_channels=4, stride=1, max_depth=1, depths=(1,)),
        ),
        width_step=4,
        kernels=(3, 5),
        bits=(4, 8),
        forbidden=(),
    )


def test_features_of_a_toy_by_hand(toy: SearchSpace) -> None:
    # depths, kernels, widths, then pw_w, pw_a, dw_w, dw_a bits; block 2 is left out.
    row = [0, 0, 1, 0, 1, 2, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    got = Converter(toy).features(np.array([row]))
    kernels = [0, 1, 0, 0, 0, 1]
    widths = [0, 0, 1, 0, 0, 0, 1, 0, 0]
    pw_w, pw_a = [0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 1]
    dw_w, dw_a = [0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 1, 0]
    assert got.dtype == np.float32
    assert got.tolist() == [kernels + widths + pw_w + pw_a + dw_w + dw_a]


def test_sizes_of_the_paper() -> None:
    converter = Converter(PAPER_SPACE)
    sizes = (converter.n_features, converter.n_arch_features, converter.n_bit_features)
    assert sizes == (772, 520, 252)


def test_active_blocks_have_one_feature_a_field_and_idle_blocks_none() -> None:
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 50)
    features = Converter(PAPER_SPACE).features(genes)
    n_active = PAPER_SPACE.active(genes).sum(axis=1)
    assert (features.sum(axis=1) == 6 * n_active).all()
    assert set(np.unique(features)) == {0.0, 1.0}


def test_features_differ_exactly_when_networks_do() -> None:
    rng = np.random.default_rng(1)
    genes = np.repeat(PAPER_SPACE.sample(rng, 20), 10, axis=0)
    column = rng.integers(0, PAPER_SPACE.n_genes, len(genes))
    genes[np.arange(len(genes)), column] = rng.integers(0, PAPER_SPACE.gene_sizes[column])
    features = Converter(PAPER_SPACE).features(genes)
    networks = PAPER_SPACE.canonical(genes)
    same_features = (features[:, None] == features).all(axis=2)
    same_network = (networks[:, None] == networks).all(axis=2)
    assert (same_features == same_network).all()


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (np.zeros((1, 131), dtype=int), "shape"),
        (np.zeros((1, 132)), "float64"),
        (np.full((2, 132), -1), "gene 0 of row 0 is -1"),
        (np.full((2, 132), 2) + np.eye(2, 132, dtype=int), "gene 0 of row 0 is 3"),
    ],
)
def test_foreign_genes_are_refused(genes: np.ndarray, message: str) -> None:
    with pytest.raises(ApqError, match=message):
        Converter(PAPER_SPACE).features(genes)


def test_features_agree_with_the_authors_encoder(reference) -> None:
    golden = json.loads((reference / "golden_cost.json").read_text())
    genes = PAPER_SPACE.encode(Subnet.from_paper(entry["arch"]) for entry in golden)
    features = Converter(PAPER_SPACE).features(genes)
    for row, entry in zip(features, golden, strict=True):
        assert np.flatnonzero(row).tolist() == sorted(entry["features"])
