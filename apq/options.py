"""Every block as one choice: its six genes read as one number, and what adds up over blocks."""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from apq.space import BLOCK_FIELDS, SearchSpace


class BlockOptions:
    """The options of all blocks of a space, numbered in one flat range.

    An option is one combination of a block's kernel, width and four bit widths; the options of
    block b are `slices[b]`, in the order of the axes of `shapes[b]` (as `BLOCK_FIELDS`). Whatever
    adds up over active blocks (a cost, a surrogate score) is then one array of a number for each
    option. The paper's space has 111,051 options.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        sizes = space.gene_sizes[space.n_stages :].reshape(len(BLOCK_FIELDS), space.n_blocks)
        self.shapes = [tuple(map(int, column)) for column in sizes.T]
        ends = np.cumsum([prod(shape) for shape in self.shapes])
        self.n_options = int(ends[-1])
        self.starts = np.concatenate([[0], ends[:-1]])
        self.slices = [slice(int(a), int(b)) for a, b in zip(self.starts, ends, strict=True)]
        # How far one choice more of each gene moves its block's option.
        # Floats: a matrix product of floats is fast, and exact for whole numbers of this size.
        self.strides = np.zeros((space.n_genes, space.n_blocks))
        for field, name in enumerate(BLOCK_FIELDS):
            for b, shape in enumerate(self.shapes):
                self.strides[space.columns[name].start + b, b] = prod(shape[field + 1 :])

    def numbers(self, genes: np.ndarray) -> np.ndarray:
        """Return each block's option, int64 (N, n_blocks); `n_options` where a block is idle."""
        numbers = self.numbers_if_active(genes)
        numbers[~self.space.active(genes)] = self.n_options
        return numbers

    def numbers_if_active(self, genes: np.ndarray) -> np.ndarray:
        """Return each block's option, int64 (N, n_blocks), as if every block were active."""
        return (genes.astype(np.float64) @ self.strides + self.starts).astype(np.int64)

    def genes_at(self, block: int, number: int) -> np.ndarray:
        """Return the six genes of one block's option, in the order of `BLOCK_FIELDS`."""
        return np.array(np.unravel_index(number - self.starts[block], self.shapes[block]))


@lru_cache(maxsize=8)
def block_options(space: SearchSpace) -> BlockOptions:
    """Return the options of a space, made once."""
    return BlockOptions(space)
