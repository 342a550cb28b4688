"""Random subnets: half uniform over the space, half spread along the budget axis."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from apq.space import SearchSpace
from apq.subnet import Subnet

DRAW_AT_ONCE = 128


def sample_both(
    space: SearchSpace, rng: np.random.Generator, n: int, quantized: bool
) -> np.ndarray:
    """Draw genes (n, n_genes), by turns uniform and spread; unless quantized, with widest bits."""
    uniform = space.sample(rng, -(-n // 2))
    spread = space.sample_spread(rng, -(-n // 2))
    genes = np.stack([uniform, spread], axis=1).reshape(-1, space.n_genes)[:n]
    if not quantized:
        genes[:, space.columns["pw_w_bits"].start :] = len(space.bits) - 1
    return genes


def draw_subnets(space: SearchSpace, seed: int, quantized: bool) -> Iterator[Subnet]:
    """Yield distinct subnets without end: half uniform, half spread along the budget axis."""
    rng = np.random.default_rng([seed, quantized])
    seen: set[bytes] = set()
    while True:
        genes = sample_both(space, rng, DRAW_AT_ONCE, quantized)
        for row, subnet in zip(space.canonical(genes), space.decode(genes), strict=True):
            if row.tobytes() not in seen:
                seen.add(row.tobytes())
                yield subnet if quantized else subnet.full_precision()
