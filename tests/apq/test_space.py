"""The search space: its counts are the paper's, and gene arrays keep their promises."""

import numpy as np
import pytest

from apq import ApqError, SearchSpace
from apq.space import BIT_FIELDS, PAPER_SPACE, Stage, as_genes
from apq.subnet import largest

SPACE = PAPER_SPACE


def test_counts_of_the_paper_space():
    assert (SPACE.n_blocks, SPACE.n_genes) == (21, 132)
    assert [len(block.widths) for block in SPACE.blocks] == (
        [5] + [7] * 4 + [11] * 4 + [21] * 4 + [25] * 4 + [49] * 4
    )


def test_blocks_have_the_paper_shapes():
    first, last = SPACE.blocks[0], SPACE.blocks[-1]
    assert (first.in_channels, first.out_channels, first.stride) == (16, 24, 2)
    assert first.widths == (64, 72, 80, 88, 96)
    assert (last.in_channels, last.out_channels, last.stride) == (192, 320, 1)
    assert [b.stride for b in SPACE.blocks] == [2, 1, 1, 1] * 3 + [1, 1, 1, 1] + [2, 1, 1, 1] + [1]
    assert not first.has_shortcut
    assert SPACE.blocks[1].has_shortcut
    assert not last.has_shortcut


@pytest.mark.parametrize("draw", ["sample", "sample_spread"])
def test_draws_are_legal_repeatable_and_reach_every_choice(draw):
    genes = getattr(SPACE, draw)(np.random.default_rng(1), 4000)
    assert genes.shape == (4000, 132)
    assert SPACE.is_legal(genes).all()
    assert (genes == getattr(SPACE, draw)(np.random.default_rng(1), 4000)).all()
    for column, size in enumerate(SPACE.gene_sizes):
        assert set(genes[:, column]) == set(range(size)), f"gene {column}"


def test_spread_draws_reach_further_than_uniform_ones():
    rng = np.random.default_rng(0)
    share = [
        (draw(rng, 500) / (SPACE.gene_sizes - 1)).mean(1).std()
        for draw in (SPACE.sample_spread, SPACE.sample)
    ]
    assert share[0] > 4 * share[1]


def test_encode_and_decode_round_trip():
    genes = SPACE.sample(np.random.default_rng(2), 200)
    subnets = SPACE.decode(genes)
    assert (SPACE.encode(subnets) == genes).all()
    assert (as_genes(SPACE, subnets) == genes).all()
    assert as_genes(SPACE, genes) is genes
    assert SPACE.encode([]).shape == (0, 132)


def test_active_follows_the_depths_by_hand():
    genes = np.zeros((1, 132), dtype=np.int64)  # depth 2 everywhere
    expected = [1, 1, 0, 0] * 5 + [1]
    assert SPACE.active(genes)[0].astype(int).tolist() == expected
    genes[0, 0] = 2  # stage 1 at depth 4
    assert SPACE.active(genes)[0].astype(int).tolist() == [1, 1, 1, 1, *expected[4:]]


def test_canonical_forgets_exactly_what_has_no_effect():
    genes = np.ones((1, 132), dtype=np.int64)  # depth 3 everywhere
    canonical = SPACE.canonical(genes)
    kernels = canonical[0, SPACE.columns["kernels"]]
    assert kernels.tolist() == [1, 1, 1, 0] * 5 + [1]
    assert canonical[0, 5] == 0  # the depth of the stage that is always whole
    assert canonical[0, :5].tolist() == [1] * 5
    assert (genes == 1).all()
    assert (SPACE.canonical(canonical) == canonical).all()


def test_make_legal_changes_forbidden_pairs_only():
    rng = np.random.default_rng(3)
    genes = rng.integers(0, SPACE.gene_sizes, size=(500, 132))
    before = genes.copy()
    SPACE.make_legal(rng, genes)
    kernels = before[:, SPACE.columns["kernels"]]
    a_bits = before[:, SPACE.columns["dw_a_bits"]]
    forbidden = (kernels == 2) & (a_bits == 0)
    changed = before != genes
    assert changed[:, SPACE.columns["dw_a_bits"]].sum() == forbidden.sum() > 0
    assert changed.sum() == forbidden.sum()
    assert SPACE.is_legal(genes).all()
    assert not SPACE.is_legal(before).all()


def test_decode_refuses_wrong_shapes_and_indices():
    genes = SPACE.sample(np.random.default_rng(0), 1)
    with pytest.raises(ApqError, match=r"shape \(1, 131\).*shape \(N, 132\)"):
        SPACE.decode(genes[:, :-1])
    with pytest.raises(ApqError, match="type float64; expected integers"):
        SPACE.decode(genes / 2)
    genes[0, 7] = 3
    with pytest.raises(ApqError, match="gene 7 of row 0 is 3; it has 3 choices"):
        SPACE.decode(genes)


def test_what_is_no_list_of_subnets_and_no_array_is_refused():
    with pytest.raises(ApqError, match="expected a list of subnets, not a Subnet"):
        SPACE.encode(largest())
    with pytest.raises(ApqError, match="expected a subnet, not a str"):
        SPACE.encode(["largest"])
    with pytest.raises(ApqError, match="genes are an array of numpy, not a list"):
        SPACE.decode([[0] * SPACE.n_genes])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem_channels": 0}, "stem_channels is 0; it must be an integer of 1 or more"),
        ({"width_step": 8.0}, "width_step is 8.0; it must be an integer"),
        ({"fixed_bits": 1}, "fixed_bits is 1; it must be an integer of 2 or more"),
        ({"kernels": ()}, r"kernels is \(\); it must be a tuple of integers that rise from 1"),
        ({"kernels": [3, 5]}, r"kernels is \[3, 5\]; it must be a tuple"),
        ({"kernels": (5, 3)}, r"kernels is \(5, 3\); it must be a tuple of integers that rise"),
        ({"kernels": (3, 4)}, "kernel 4 has no middle; kernels must be odd"),
        ({"bits": (1, 8)}, r"bits is \(1, 8\); .* that rise from 2 or more"),
        ({"bits": (4, 4)}, r"bits is \(4, 4\)"),
        ({"bits": (4,)}, "kernel 7 is forbidden with all bits; leave it out"),
        ({"expand_ratios": (6, 4)}, "expand_ratios are 6 and 4; they must be 1 or more, and rise"),
        ({"stages": ()}, "a search space needs at least one stage"),
    ],
)
def test_a_space_that_no_network_can_have_is_refused(change, message):
    with pytest.raises(ApqError, match=message):
        SearchSpace(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_channels": 0}, "out_channels is 0"),
        ({"stride": 3}, "a stage's stride is 3; it must be 1 or 2"),
        ({"max_depth": 0}, "max_depth is 0"),
        ({"depths": (3, 2)}, r"depths is \(3, 2\); it must be a tuple of integers that rise"),
        ({"depths": (0, 1)}, r"depths is \(0, 1\)"),
    ],
)
def test_a_stage_that_no_network_can_have_is_refused(change, message):
    with pytest.raises(ApqError, match=message):
        Stage(**{"out_channels": 8, "stride": 1, **change})


def test_another_backbone_is_another_instance(tiny_space):
    genes = tiny_space.sample(np.random.default_rng(0), 20)
    assert genes.shape == (20, 2 + 6 * 4)
    assert (tiny_space.encode(tiny_space.decode(genes)) == genes).all()
    with pytest.raises(ApqError, match="another search space"):
        SPACE.encode(tiny_space.decode(genes))
    assert SearchSpace() == SPACE
    assert list(SPACE.columns)[-4:] == list(BIT_FIELDS)
