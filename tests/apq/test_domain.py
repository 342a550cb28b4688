"""Domains: by brute force on a toy space, by property on the paper's."""

import itertools

import numpy as np
import pytest

from apq.domain import Domain, gene_name
from apq.errors import ApqError
from apq.options import block_options
from apq.space import BIT_FIELDS, PAPER_SPACE, SearchSpace, Stage

TOY = SearchSpace(
    first_block_channels=8,
    stages=(Stage(out_channels=8, stride=2, max_depth=2, depths=(1, 2)),),
    kernels=(3, 7),
    width_step=16,
    bits=(4, 8),
)
COLUMNS = PAPER_SPACE.columns


@pytest.fixture(scope="module")
def toy_genes() -> np.ndarray:
    """Every gene array of the toy space, legal or not."""
    sizes = tuple(TOY.gene_sizes)
    return np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ---- options ----


def test_every_option_has_its_number() -> None:
    options = block_options(TOY)
    assert options.n_options == 2 * 2**6
    for b in range(TOY.n_blocks):
        for number, fields in enumerate(itertools.product(range(2), repeat=6)):
            genes = np.zeros((1, TOY.n_genes), dtype=int)
            genes[0, 0] = 1  # depth 2: both blocks are active
            genes[0, 1 + b :: TOY.n_blocks] = fields
            assert options.numbers(genes)[0, b] == options.starts[b] + number
            assert options.genes_at(b, options.starts[b] + number).tolist() == list(fields)


def test_idle_blocks_have_the_number_after_the_last(rng: np.random.Generator) -> None:
    options = block_options(PAPER_SPACE)
    genes = PAPER_SPACE.sample(rng, 50)
    numbers, active = options.numbers(genes), PAPER_SPACE.active(genes)
    assert options.n_options == 111051
    assert ((numbers == options.n_options) == ~active).all()
    for row, kept, own in zip(genes, active, numbers, strict=True):
        for b in np.flatnonzero(kept):
            expected = row[PAPER_SPACE.n_stages + b :: PAPER_SPACE.n_blocks]
            assert options.genes_at(b, own[b]).tolist() == expected.tolist()


# ---- the whole space ----


def test_the_whole_domain_holds_what_can_run(toy_genes: np.ndarray) -> None:
    assert (Domain.whole(TOY).contains(toy_genes) == TOY.is_legal(toy_genes)).all()


def test_samples_are_uniform_and_legal(rng: np.random.Generator) -> None:
    genes = Domain.whole(PAPER_SPACE).sample(rng, 4000)
    PAPER_SPACE.check_genes(genes)
    assert Domain.whole(PAPER_SPACE).contains(genes).all()
    widths = genes[:, COLUMNS["widths"].stop - 1]
    assert np.bincount(widths, minlength=49) == pytest.approx(4000 / 49, rel=0.5)
    assert np.bincount(genes[:, COLUMNS["kernels"]].ravel()) == pytest.approx(28000, rel=0.02)
    # A third of the blocks has 7x7 kernels, which pass their 4 bits on to 6 and 8.
    shares = np.bincount(genes[:, COLUMNS["dw_a_bits"]].ravel()) / genes[:, :21].size
    assert shares == pytest.approx([2 / 9, 7 / 18, 7 / 18], abs=0.01)


# ---- less than that ----


@pytest.mark.parametrize("seed", range(8))
def test_a_random_domain_samples_all_of_itself(seed: int, toy_genes: np.ndarray) -> None:
    rng = np.random.default_rng(seed)
    asked = rng.random((TOY.n_genes, 2)) < 0.6
    asked[np.arange(TOY.n_genes), rng.integers(0, 2, TOY.n_genes)] = True
    try:
        domain = Domain(TOY, asked)
    except ApqError:
        inside = TOY.is_legal(toy_genes) & asked[np.arange(TOY.n_genes), toy_genes].all(axis=1)
        assert not inside.any()
        return
    drawn = domain.sample(rng, 3000)
    assert domain.contains(drawn).all()
    inside = TOY.canonical(toy_genes[domain.contains(toy_genes)])
    assert len(np.unique(TOY.canonical(drawn), axis=0)) <= len(np.unique(inside, axis=0))
    for column in range(TOY.n_genes):  # nothing that is allowed is out of reach
        assert set(drawn[:, column]) == set(np.flatnonzero(domain.allowed[column]))


def test_a_fixed_architecture_leaves_only_bits(rng: np.random.Generator) -> None:
    subnet = PAPER_SPACE.sample(rng, 1)
    first_bit = COLUMNS["pw_w_bits"].start
    domain = Domain.whole(PAPER_SPACE)
    for name in ("depths", "kernels", "widths"):  # one after the other, as flags would
        domain = domain.fix(COLUMNS[name], subnet[0, COLUMNS[name]])
    genes = domain.sample(rng, 200)
    assert domain.contains(genes).all()
    alike = PAPER_SPACE.canonical(genes) == PAPER_SPACE.canonical(subnet)
    assert alike[:, :first_bit].all()
    open_bits = alike[:, first_bit:][:, np.tile(domain.reachable, len(BIT_FIELDS))]
    assert not open_bits.all(axis=0).any()
    assert domain.contains(subnet).all()


def test_idle_blocks_may_hold_anything() -> None:
    shallow = np.zeros((1, PAPER_SPACE.n_genes), dtype=int)
    shallow[0, COLUMNS["kernels"].start + 3] = 2  # block 4 is idle: 7x7 with 4-bit activations
    domain = Domain.whole(PAPER_SPACE)
    for name in COLUMNS:
        domain = domain.fix(COLUMNS[name], shallow[0, COLUMNS[name]])
    assert domain.contains(shallow).all()
    assert PAPER_SPACE.is_legal(domain.sample(np.random.default_rng(0), 5)).all()


def test_a_kernel_without_runnable_bits_goes() -> None:
    domain = Domain.whole(PAPER_SPACE).exclude(COLUMNS["dw_a_bits"], [1, 2])
    assert not domain.allowed[COLUMNS["kernels"], 2].any()
    assert domain.allowed[COLUMNS["kernels"], :2].all()
    with pytest.raises(ApqError, match=r"nothing is left .* kernel of block 1: exclude or"):
        domain.exclude(COLUMNS["kernels"], [0, 1])


def test_settled_genes_can_wake_blocks_up(rng: np.random.Generator) -> None:
    domain = Domain.whole(PAPER_SPACE).exclude(COLUMNS["pw_w_bits"], [0])
    foreign = PAPER_SPACE.canonical(domain.sample(rng, 100))
    foreign[:, COLUMNS["depths"]] = 0
    assert domain.contains(foreign).all()
    settled = domain.settle(foreign)
    assert (PAPER_SPACE.canonical(settled) == PAPER_SPACE.canonical(foreign)).all()
    settled[:, COLUMNS["depths"]] = 2
    assert domain.contains(settled).all()


def test_the_least_is_that_of_brute_force(toy_genes: np.ndarray) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        domain = Domain.whole(TOY)
        if seed:
            domain = domain.exclude([1 + seed], [seed % 2])
        values = rng.normal(size=domain.options.n_options)
        inside = toy_genes[domain.contains(toy_genes)]
        padded = np.append(values, 0)
        sums = padded[domain.options.numbers(inside)].sum(axis=1)
        least = domain.least(values)
        assert domain.contains(least).all()
        assert padded[domain.options.numbers(least)].sum() == pytest.approx(sums.min(), abs=1e-12)


def test_a_block_that_nothing_is_known_of_is_left_out_or_named() -> None:
    domain = Domain.whole(TOY)
    values = -np.ones(domain.options.n_options)
    values[domain.options.slices[1]] = np.inf
    assert domain.least(values)[0, 0] == 0  # depth 1
    with pytest.raises(ApqError, match="no choice left for block 2 can be costed"):
        domain.exclude([0], [0]).least(values)


def test_mistakes_are_named() -> None:
    assert gene_name(PAPER_SPACE, 1) == "depth of stage 2"
    assert gene_name(PAPER_SPACE, COLUMNS["widths"].start + 4) == "width of block 5"
    with pytest.raises(ApqError, match=r"a domain is a bool array of shape \(132, 49\), not int64"):
        Domain(PAPER_SPACE, np.ones((132, 49), dtype=int))
    with pytest.raises(ApqError, match="depth of stage 3"):
        Domain.whole(PAPER_SPACE).exclude(COLUMNS["depths"], [0, 1]).exclude([2], [2])
