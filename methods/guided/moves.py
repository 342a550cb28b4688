"""All changes of one gene at once: what each would gain, by the gradients, and exactly cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apq.space import BLOCK_FIELDS
from methods.problem import SearchProblem
from utils.converter import Converter


@dataclass(frozen=True)
class Prospects:
    """What single changes would do to E subnets; the slots of a block are its genes' choices."""

    gains: np.ndarray
    """First-order change of the score, float32 (E, n_blocks, n_slots); -inf where not allowed."""
    costs: np.ndarray
    """Change of each cost, float32 (n_limits, E, n_blocks, n_slots)."""
    block_values: np.ndarray
    """What each block, as it is, adds to the score if active, (E, n_blocks)."""
    block_costs: np.ndarray
    """What each block, as it is, adds to each cost if active, (n_limits, E, n_blocks)."""

    def take(self, rows: np.ndarray) -> Prospects:
        """Return those of some of the subnets."""
        return Prospects(
            self.gains[rows],
            self.costs[:, rows],
            self.block_values[rows],
            self.block_costs[:, rows],
        )

    def joined(self, other: Prospects) -> Prospects:
        """Return those of this one's subnets and then the other's."""
        return Prospects(
            np.concatenate([self.gains, other.gains]),
            np.concatenate([self.costs, other.costs], axis=1),
            np.concatenate([self.block_values, other.block_values]),
            np.concatenate([self.block_costs, other.block_costs], axis=1),
        )


class Moves:
    """The single-gene changes of a problem's domain, laid out block by block.

    Every block has the same number of slots, as many as the choices of its six genes in the
    block that has most; in smaller blocks some stand for nothing.
    """

    def __init__(self, problem: SearchProblem) -> None:
        self.problem = problem
        space = problem.space
        n_slots = int(space.gene_sizes[space.n_stages :].reshape(6, -1).sum(axis=0).max())
        shape = (space.n_blocks, n_slots)
        self.genes, self.choices = np.zeros(shape, dtype=int), np.zeros(shape, dtype=int)
        self._real = np.zeros(shape, dtype=bool)
        for b in range(space.n_blocks):
            columns = [space.columns[name].start + b for name in BLOCK_FIELDS]
            genes = np.repeat(columns, space.gene_sizes[columns])
            n = len(genes)
            self.genes[b] = genes[-1]
            self.genes[b, :n] = genes
            self.choices[b, :n] = np.concatenate([np.arange(space.gene_sizes[c]) for c in columns])
            self._real[b, :n] = problem.domain.allowed[genes, self.choices[b, :n]]
        self._gene_features = Converter(space).starts
        self._first_feature = self._gene_features[self.genes - space.n_stages]
        blocks = np.arange(space.n_blocks)[:, None]
        # An idle block's option may be one that cannot run: costly to wake, but inf - inf is NaN.
        costs = problem.option_costs
        most_expensive = np.where(np.isfinite(costs), costs, 0).max(axis=1, keepdims=True)
        self._finite_costs = np.where(np.isfinite(costs), costs, 10 * most_expensive)
        self._strides = problem.options.strides[self.genes, blocks].astype(int)

    def prospects(self, genes: np.ndarray) -> Prospects:
        """Return what every change would do to subnets (E, n_genes)."""
        problem, space = self.problem, self.problem.space
        gradients = problem.gradients(genes)
        current = genes[:, self.genes]
        at_current = gradients[np.arange(len(genes))[:, None, None], self._first_feature + current]
        gains = gradients[:, self._first_feature + self.choices * self._real] - at_current
        gains[(self.choices == current) | ~self._real] = -np.inf
        numbers = problem.options.numbers_if_active(genes)
        changed = numbers[:, :, None] + (self.choices - current) * self._strides * self._real
        block_costs = self._finite_costs[:, numbers]
        costs = problem.option_costs[:, changed] - block_costs[..., None]
        own = gradients[
            np.arange(len(genes))[:, None], self._gene_features + genes[:, space.n_stages :]
        ]
        values = own.reshape(len(genes), len(BLOCK_FIELDS), space.n_blocks).sum(axis=1)
        return Prospects(gains.astype(np.float32), costs.astype(np.float32), values, block_costs)

    def apply(self, genes: np.ndarray, slots: np.ndarray, used: np.ndarray) -> None:
        """Set, in place, one slot of each block where `used`; both are (N, n_blocks)."""
        rows, blocks = np.nonzero(used)
        picked = slots[rows, blocks]
        genes[rows, self.genes[blocks, picked]] = self.choices[blocks, picked]

    def change_block(
        self,
        genes: np.ndarray,
        rows: np.ndarray,
        block: int,
        origins: np.ndarray,
        gains: np.ndarray,
        prices: np.ndarray,
    ) -> None:
        """Set, in place, all genes of one block to the option of the best net gain.

        For some rows of `genes`; `origins` (n_rows, n_genes) are what the gains (n_rows, n_slots)
        are relative to, `prices` (n_rows, n_limits) what the costs count.
        """
        columns = self.problem.space.columns
        shape = self.problem.options.shapes[block]
        net = -(prices @ self.problem.option_costs[:, self.problem.options.slices[block]])
        net = net.astype(np.float32).reshape(len(rows), *shape)
        first = 0
        for axis, (name, size) in enumerate(zip(BLOCK_FIELDS, shape, strict=True)):
            of_gene = gains[:, first : first + size].copy()
            of_gene[np.arange(len(rows)), origins[:, columns[name].start + block]] = 0
            net += of_gene.reshape(
                len(rows), *(size if a == axis else 1 for a in range(len(shape)))
            )
            first += size
        best = np.unravel_index(net.reshape(len(rows), -1).argmax(axis=1), shape)
        for name, choices in zip(BLOCK_FIELDS, best, strict=True):
            genes[rows, columns[name].start + block] = choices
