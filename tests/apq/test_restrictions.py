"""Frozen parts and excluded choices: what is left, and what cannot be."""

from dataclasses import replace

import numpy as np
import pytest

from apq import restrictions
from apq.domain import Domain
from apq.errors import ApqError
from apq.space import BIT_FIELDS, PAPER_SPACE
from apq.subnet import largest, smallest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def draw(domain, rng, n=300):
    genes = domain.sample(rng, n)
    assert domain.contains(genes).all()
    return genes


def a_subnet(seed=1):
    return PAPER_SPACE.decode(PAPER_SPACE.sample(np.random.default_rng(seed), 1))[0]


def test_the_parts_cover_every_gene_once():
    parts = restrictions.frozen_parts(PAPER_SPACE)
    assert list(parts) == ["architecture", "bits", *(f"stage{s}" for s in range(1, 7))]
    by_kind = np.concatenate([parts["architecture"], parts["bits"]])
    by_stage = np.concatenate([parts[f"stage{s}"] for s in range(1, 7)])
    for columns in (by_kind, by_stage):
        np.testing.assert_array_equal(np.sort(columns), np.arange(PAPER_SPACE.n_genes))
    assert len(parts["stage6"]) == 7  # its depth and the six fields of its one block


@pytest.mark.parametrize("part", ["architecture", "bits", "stage2"])
def test_a_frozen_part_stays_and_the_rest_varies(rng, part):
    subnet = a_subnet()
    domain = restrictions.freeze(Domain.whole(PAPER_SPACE), [part], subnet)
    genes = PAPER_SPACE.canonical(draw(domain, rng))
    own = PAPER_SPACE.encode([subnet])
    columns = restrictions.frozen_parts(PAPER_SPACE)[part]
    if part == "bits":  # of the blocks that it has
        columns = columns[np.tile(PAPER_SPACE.active(own)[0], 4)]
    n = PAPER_SPACE.n_stages
    active = PAPER_SPACE.active(genes)
    counts = np.concatenate([np.ones((len(genes), n), dtype=bool), np.tile(active, 6)], axis=1)
    wrong = (genes != own) & counts
    assert not wrong[:, columns].any()
    rest = np.setdiff1d(np.arange(PAPER_SPACE.n_genes), columns)
    # Everything else but the depth of stage 6, and blocks that a frozen depth leaves out, varies.
    assert wrong[:, rest].any(axis=0).sum() > 40


def test_blocks_that_the_frozen_bits_are_not_of_choose_their_own(rng):
    whole, subnet = Domain.whole(PAPER_SPACE), smallest().with_bits(4)
    domain = restrictions.freeze(whole, ["bits"], subnet)
    deepest = PAPER_SPACE.canonical(draw(domain, rng))
    own = PAPER_SPACE.active(PAPER_SPACE.encode([subnet]))[0]
    for field in BIT_FIELDS:
        free = deepest[:, PAPER_SPACE.columns[field]].max(axis=0) > 0
        assert not free[own].any()
        assert free[~own].all()
    together = restrictions.freeze(whole, ["bits", "stage1"], subnet)
    first = restrictions.frozen_parts(PAPER_SPACE)["stage1"]
    assert (draw(together, rng)[:, first] == PAPER_SPACE.encode([subnet])[0, first]).all()


def test_several_parts_are_frozen_together(rng):
    subnet = a_subnet()
    domain = restrictions.freeze(Domain.whole(PAPER_SPACE), ["architecture", "bits"], subnet)
    drawn = PAPER_SPACE.canonical(draw(domain, rng, 5))
    own = PAPER_SPACE.canonical(PAPER_SPACE.encode([subnet]))
    assert (drawn == own).all()
    assert restrictions.freeze(domain, [], subnet) is domain


def test_excluded_choices_are_never_drawn(rng):
    domain = restrictions.exclude_bits(Domain.whole(PAPER_SPACE), [4])
    domain = restrictions.exclude_kernels(domain, [3, 7])
    domain = restrictions.limit_width_ratio(domain, 5)
    for subnet in PAPER_SPACE.decode(draw(domain, rng, 50)):
        blocks = subnet.active_blocks
        assert {subnet.kernels[b.index] for b in blocks} == {5}
        assert all(subnet.widths[b.index] <= 5 * b.in_channels for b in blocks)
        for name in BIT_FIELDS:
            assert {getattr(subnet, name)[b.index] for b in blocks} <= {6, 8}


@pytest.mark.parametrize(
    ("narrow", "message"),
    [
        (lambda d: restrictions.exclude_bits(d, [5]), "no bit width 5 to exclude; there are 4, 6"),
        (lambda d: restrictions.exclude_kernels(d, [9]), "no kernel 9 to exclude; there are 3, 5"),
        (lambda d: restrictions.exclude_bits(d, [4, 6, 8]), "every bit width is excluded; leave"),
        (lambda d: restrictions.limit_width_ratio(d, 3), "nothing is left .* width of block 1"),
        (
            lambda d: restrictions.freeze(d, ["archtecture"], a_subnet()),
            r"no part to freeze 'archtecture' \(did you mean 'architecture'\?\)",
        ),
        (lambda d: restrictions.freeze(d, ["bits"], largest()), "has no bits"),
        (
            lambda d: restrictions.freeze(
                restrictions.exclude_bits(d, [8]), ["bits"], largest().with_bits(8)
            ),
            "nothing is left .* pw_w_bits of block 1: exclude",
        ),
        (
            lambda d: restrictions.freeze(
                restrictions.exclude_kernels(d, [3, 5]), ["bits"], smallest().with_bits(4)
            ),
            "nothing is left .* dw_a_bits of block 1 together with the kernel of block 1: exclude",
        ),
        (
            lambda d: restrictions.freeze(
                restrictions.exclude_bits(d, [4]),
                ["bits"],
                replace(
                    smallest().with_bits(8), dw_a_bits=(8, 4, *[8] * (PAPER_SPACE.n_blocks - 2))
                ),
            ),
            "nothing is left .* for the dw_a_bits of block 2: exclude",
        ),
    ],
)
def test_what_cannot_be_is_told(narrow, message):
    with pytest.raises(ApqError, match=message):
        narrow(Domain.whole(PAPER_SPACE))


@pytest.mark.parametrize("parts", [["architecture"], ("architecture",)])
def test_the_architecture_of_a_full_precision_subnet_can_be_frozen(rng, parts):
    domain = restrictions.freeze(Domain.whole(PAPER_SPACE), parts, largest())
    genes = draw(domain, rng, 20)
    assert {s.full_precision() for s in PAPER_SPACE.decode(genes)} == {largest()}


@pytest.mark.parametrize("ratio", [4, 5, 6])
def test_a_width_of_exactly_the_ratio_is_left(ratio):
    domain = restrictions.limit_width_ratio(Domain.whole(PAPER_SPACE), ratio)
    allowed = domain.allowed[PAPER_SPACE.columns["widths"]]
    for block, row in zip(PAPER_SPACE.blocks, allowed, strict=True):
        widest = max(np.array(block.widths)[row[: len(block.widths)]])
        # Widths are multiples of 8.
        assert widest == ratio * block.in_channels // 8 * 8
