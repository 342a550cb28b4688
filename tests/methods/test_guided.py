"""Guided search's moves: what each is said to gain and cost, by doing it."""

import numpy as np
import pytest

from apq import ApqError
from apq.space import PAPER_SPACE
from methods.guided import search
from methods.guided.moves import Moves
from methods.guided.search import _Guided as Guided
from methods.guided.settings import GuidedSettings
from methods.problem import Limit, SearchProblem


@pytest.fixture
def problem(toy_space, random_cost, additive_values):
    """A score and a cost of the toy space that add up, so that every move's effect is exact."""
    rng = np.random.default_rng(0)
    limits = (Limit(random_cost(toy_space, rng), 10.0),)
    score, gradients, _ = additive_values(SearchProblem(toy_space, len, limits), rng)
    return SearchProblem(toy_space, score, limits, gradient_fn=gradients)


@pytest.fixture
def genes(toy_space, toy_genes):
    """Some subnets with every block active."""
    deep = toy_genes[(toy_genes[:, : toy_space.n_stages] == 1).all(axis=1)]
    return deep[np.random.default_rng(1).choice(len(deep), 10, replace=False)]


def test_every_move_gains_and_costs_what_it_says(problem, genes):
    moves, before = Moves(problem), problem.costs(genes)
    found = moves.prospects(genes)
    n_checked = 0
    for e, b, s in np.argwhere(np.isfinite(found.gains) & np.isfinite(found.costs[0])):
        child = genes[[e]].copy()
        child[0, moves.genes[b, s]] = moves.choices[b, s]
        gain = problem.score(child)[0] - problem.score(genes[[e]])[0]
        assert found.gains[e, b, s] == pytest.approx(gain, abs=1e-6)
        added = (problem.costs(child) - before[e])[0, 0]
        assert found.costs[0, e, b, s] == pytest.approx(added, abs=1e-5)
        n_checked += 1
    assert n_checked > 100


@pytest.mark.parametrize("block", [0, 1])
def test_a_changed_block_is_the_best_of_all_its_options(problem, genes, block):
    moves, price = Moves(problem), 0.05
    found = moves.prospects(genes)
    rows, changed = np.arange(len(genes)), genes.copy()
    prices = np.full((len(genes), 1), price)
    moves.change_block(changed, rows, block, genes, found.gains[:, block], prices)
    space, part = problem.space, problem.options.slices[block]
    columns = slice(space.n_stages + block, None, space.n_blocks)
    for row, got in zip(genes, changed, strict=True):
        options = np.repeat(row[None], part.stop - part.start, axis=0)
        options[:, columns] = [
            problem.options.genes_at(block, n) for n in range(part.start, part.stop)
        ]
        net = problem.score_fn(options) - price * problem.option_costs[0, part]
        assert got[columns].tolist() == options[net.argmax(), columns].tolist()
        rest = np.delete(np.arange(space.n_genes), np.arange(space.n_genes)[columns])
        assert (got[rest] == row[rest]).all()


def test_changed_depths_are_those_of_the_best_value_less_the_price_of_every_cost(
    tiny_space, random_cost, additive_values
) -> None:
    rng = np.random.default_rng(0)
    limits = tuple(Limit(random_cost(tiny_space, rng, t), 99.0) for t in ("latency", "energy"))
    score, gradients, _ = additive_values(SearchProblem(tiny_space, len, limits), rng)
    problem = SearchProblem(tiny_space, score, limits, gradient_fn=gradients)
    guided = Guided(problem, GuidedSettings())
    elites = tiny_space.sample(np.random.default_rng(1), 300)
    prospects = guided.moves.prospects(elites)
    rows, children = np.arange(len(elites)), elites.copy()
    # About what a block's score is worth, each cost in turn the dearer one, or none at all.
    prices = rng.choice([0.0, 0.02, 0.1], (len(elites), 2))
    guided._change_depths(children, rows, prospects, prices, unit=0.0)
    changed = children != elites
    assert changed.sum() > 50
    assert not changed[:, tiny_space.n_stages :].any()
    for stage in range(tiny_space.n_stages):
        net = []
        for depth in range(2):
            option = elites.copy()
            option[:, stage] = depth
            net.append(score(option) - (prices * problem.costs(option)).sum(axis=1))
        moved = changed[:, stage]
        assert (children[moved, stage] == np.argmax(net, axis=0)[moved]).all()
        assert set(children[moved, stage]) == {0, 1}


def test_a_search_without_an_end_is_refused() -> None:
    for end in ({"seconds": 1.0}, {"patience": 5}):
        assert GuidedSettings(evaluations=0, **end).evaluations == 0
    with pytest.raises(ApqError, match="nothing ends the search: set evaluations, seconds or"):
        GuidedSettings(evaluations=0)


def test_golden_run(latency, additive_values) -> None:
    # To be blessed anew only for a change on purpose.
    limits = (Limit(latency, 11.0),)
    rng = np.random.default_rng(0)
    score, gradients, _ = additive_values(SearchProblem(PAPER_SPACE, len, limits), rng)
    problem = SearchProblem(PAPER_SPACE, score, limits, gradient_fn=gradients)
    result = search(problem, GuidedSettings(evaluations=2000))
    assert result.accuracy == pytest.approx(0.784089138111, abs=1e-9)
    assert result.costs[0] == pytest.approx(10.7041, abs=1e-9)
    assert result.n_evaluated == 2035
