"""Guided search: descents along the predictor's gradients, with exact costs, begun again and again.

The predictor is a small smooth network, and the costs add up over blocks. So the gradients at a
subnet tell, to first order, what each change of one gene gains, and the tables what it costs. A
child takes in every block the change with the best gain, less a price for each cost and a toll on
any change. Price, toll and what may change at all are drawn anew for every child, so that a
step tries bold and timid ones side by side; the predictor then judges the feasible ones, and the
best of all become the elites of the next step. A descent that no longer improves is left; the
next one begins from random subnets, or from elites that mutation has kicked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from methods.guided.moves import Moves, Prospects
from methods.guided.settings import GuidedSettings
from methods.pool import Drawn, Pool
from methods.problem import SearchProblem
from methods.run import N_CANDIDATES, ProgressFn, Run, SearchResult

# Steps without improvement after which a descent is left.
STALE = 30
# The toll on a change, in mean absolute gains: from next to none to more than most gain.
TOLLS = (0.02, 3.0)
# Spread (of the logarithm) of the prices drawn around the current ones.
PRICE_SPREAD = 0.5
# How fast prices follow the share of children that break a limit, and how far they may go.
PRICE_RATE, PRICE_RANGE = 0.2, 1e4
# Share of children that choose all genes of one block together.
WHOLE_BLOCKS = 0.25
# Share of children that may change depths, and of their stages that do.
DEPTH_CHILDREN, DEPTH_STAGES = 0.5, 0.3
# Probability that a kick redraws a block or a depth.
KICK = 0.15
RANDOM_RESTARTS = 0.5
# At the tightest limits next to no child is feasible, and a count of evaluations would never end.
DRAWN_PER_EVALUATION = 4
GROWTH = (1, 2, 4, 8)


def search(
    problem: SearchProblem,
    settings: GuidedSettings,
    on_progress: ProgressFn | None = None,
    start: np.ndarray | None = None,
) -> SearchResult:
    """Find the most accurate subnet of a problem, which must know its gradients.

    `start` are feasible subnets' genes (N, n_genes) to begin from: what is found is at least as
    good. `on_progress` is called after each step. Ctrl-C after the first one returns the best so
    far. Raises ApqError when no subnet is feasible, or an accuracy not finite.
    """
    return _Guided(problem, settings).search(on_progress, start)


class _Guided(Run):
    settings: GuidedSettings

    def __init__(self, problem: SearchProblem, settings: GuidedSettings) -> None:
        super().__init__(problem, settings)
        self.moves = Moves(problem)
        self.first_prices: np.ndarray | None = None
        self.n_drawn = 0
        space = problem.space
        # Which blocks each depth choice of each stage keeps, (n_stages, choices, n_blocks).
        deepest = max(len(stage.depths) for stage in space.stages)
        self._kept = np.zeros((space.n_stages, deepest, space.n_blocks))
        for block in space.blocks:
            for d, depth in enumerate(space.stages[block.stage].depths):
                self._kept[block.stage, d, block.index] = block.position < depth
        self._depth_allowed = problem.domain.allowed[: space.n_stages, :deepest]

    def steps(self, start: np.ndarray) -> Iterator[Pool]:
        """Yield the ten best of all descents after each step of one."""
        best: Pool | None = None
        n_descents = 0
        while not self._is_over():
            n_elites = self.settings.elites * GROWTH[n_descents % len(GROWTH)]
            n_descents += 1
            for elites in self._descend(self._beginning(n_elites, best, start), n_elites):
                best = self._merged(best, elites)
                yield best
                if self._is_over():
                    return

    def _is_over(self) -> bool:
        budget = self.settings.evaluations
        spent = max(self.evaluator.n_evaluated, self.n_drawn / DRAWN_PER_EVALUATION)
        return bool(budget) and spent >= budget

    def _merged(self, best: Pool | None, elites: Pool) -> Pool:
        if best is None:
            return elites.best(N_CANDIDATES)
        worst = best.accuracy[-1] if len(best) >= N_CANDIDATES else -np.inf
        news = int(np.searchsorted(-elites.accuracy, -worst))
        if not news:
            return best
        merged, _ = best.merged(elites.best(news))
        return merged.best(N_CANDIDATES)

    def _beginning(self, n: int, best: Pool | None, start: np.ndarray) -> np.ndarray:
        """Return feasible subnets (N, n_genes) for a descent to begin with."""
        problem = self.problem
        if best is None and len(start):
            return start
        if best is None or self.rng.random() < RANDOM_RESTARTS:
            origins = np.repeat(problem.domain.settle(problem.feasible_subnet), n, axis=0)
            drawn = self.operators.fresh(n)
        else:
            origins = np.repeat(best.genes[:1], n, axis=0)
            drawn = self.operators.mutate(origins, KICK)
        return self.operators.repair(drawn, origins, problem.feasible)

    def _descend(self, genes: np.ndarray, n_elites: int) -> Iterator[Pool]:
        drawn = Drawn.of(genes, self.problem)
        elites = self.evaluator.scored(drawn).ranked().best(n_elites)
        yield elites
        prospects = self._prospects(elites.genes)
        if self.first_prices is None:
            self.first_prices = _first_prices(prospects)
        prices, stale = self.first_prices, 0
        while stale < STALE:
            children, moved = self._children(elites.genes, prospects, prices)
            drawn = Drawn.of(children, self.problem)
            feasible = np.flatnonzero(self.problem.within(drawn.costs))
            prices = self._follow(prices, drawn.costs[moved])
            before = elites.accuracy[0]
            if len(feasible):
                news = self.evaluator.scored(drawn.take(feasible))
                elites, prospects = self._survivors(elites, prospects, news, n_elites)
            stale = 0 if elites.accuracy[0] > before else stale + 1
            yield elites

    def _prospects(self, genes: np.ndarray) -> Prospects:
        self.evaluator.n_evaluated += len(genes)
        return self.moves.prospects(genes)

    def _survivors(
        self, elites: Pool, prospects: Prospects, news: Pool, n: int
    ) -> tuple[Pool, Prospects]:
        joined, rows = elites.merged(news)
        rows, joined = rows[:n], joined.best(n)
        new = rows >= len(elites)
        if not new.any():
            return joined, prospects.take(rows)
        both = prospects.joined(self._prospects(joined.genes[new]))
        rows = np.where(new, len(elites) + np.cumsum(new) - 1, rows)
        return joined, both.take(rows)

    def _children(
        self, elites: np.ndarray, prospects: Prospects, prices: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return changed elites (N, n_genes), and which of them differ from theirs."""
        n = self.settings.children * self.settings.elites
        self.n_drawn += n
        parents = self.rng.integers(len(elites), size=n)
        drawn = prices * np.exp(self.rng.normal(0, PRICE_SPREAD, (n, len(prices))))
        unit = _mean_size(prospects.gains)
        low, high = np.log(TOLLS)
        tolls = unit * np.exp(self.rng.uniform(low, high, (n, 1, 1)))
        gains = prospects.gains[parents] - tolls.astype(np.float32)
        # Bytes are drawn much faster than numbers.
        shut = np.frombuffer(self.rng.bytes(gains.size), dtype=np.uint8).reshape(gains.shape)
        gains[shut < self.rng.integers(0, 230, (n, 1, 1))] = -np.inf
        net = gains.copy()
        for price, costs in zip(drawn.T.astype(np.float32), prospects.costs, strict=True):
            net -= price[:, None, None] * costs[parents]
        slots = net.argmax(axis=2)
        used = np.take_along_axis(net, slots[..., None], axis=2)[..., 0] > 0
        children = elites[parents]
        self.moves.apply(children, slots, used)
        # Some changes of two genes pass through one that is worse, or that cannot run.
        whole = np.flatnonzero(self.rng.random(n) < WHOLE_BLOCKS)
        block = int(self.rng.integers(self.problem.space.n_blocks))
        self.moves.change_block(
            children, whole, block, elites[parents[whole]], gains[whole, block], drawn[whole]
        )
        self._change_depths(children, parents, prospects, drawn, unit)
        return children, (children != elites[parents]).any(axis=1)

    def _change_depths(
        self,
        children: np.ndarray,
        parents: np.ndarray,
        prospects: Prospects,
        prices: np.ndarray,
        unit: float,
    ) -> None:
        """Set, in place, some depths to those of the best net value, give or take some noise."""
        n, n_stages = len(children), self.problem.space.n_stages
        values = prospects.block_values[parents]
        for price, costs in zip(prices.T, prospects.block_costs, strict=True):
            values = values - price[:, None] * costs[parents]
        net = np.einsum("nb,sdb->nsd", values, self._kept)
        net += 2 * unit * self.rng.gumbel(size=net.shape)
        net[:, ~self._depth_allowed] = -np.inf
        change = self.rng.random((n, n_stages)) < DEPTH_STAGES
        change &= self.rng.random((n, 1)) < DEPTH_CHILDREN
        depths = children[:, :n_stages]
        depths[change] = net.argmax(axis=2)[change]

    def _follow(self, prices: np.ndarray, costs: np.ndarray) -> np.ndarray:
        """Return prices that let about half of the changed children break each limit."""
        if not len(costs):
            return prices
        broken = (costs > self.problem.maximum).mean(axis=0)
        prices = prices * np.exp(PRICE_RATE * (broken - 0.5))
        return np.clip(prices, self.first_prices / PRICE_RANGE, self.first_prices * PRICE_RANGE)


def _mean_size(values: np.ndarray) -> float:
    """Return the mean magnitude of the finite values; 1 without any: a unit has to be finite."""
    sizes = np.abs(values[np.isfinite(values)])
    return float(sizes.mean()) if len(sizes) else 1.0


def _first_prices(prospects: Prospects) -> np.ndarray:
    """Return how much score a unit of each cost is worth, roughly, (n_limits,)."""
    gain = _mean_size(prospects.gains)
    return np.array([gain / max(_mean_size(costs), 1e-12) for costs in prospects.costs])
