"""The encoder: genes as the one-hot features that the accuracy predictor reads."""

import numpy as np

from apq.space import BIT_FIELDS, BLOCK_FIELDS, SearchSpace


class Converter:
    """Encodes the genes of one space; every block field of every block is one one-hot group.

    The groups stand in the order of the gene columns: kernels, widths, then the four bit
    widths. Depths have no features of their own: a block that they leave out is all zeros. `starts`
    is where each group begins, (n_genes - n_stages,).
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        sizes = space.gene_sizes[space.n_stages :]
        ends = np.cumsum(sizes)
        self.starts = ends - sizes
        n_bit_genes = len(BIT_FIELDS) * space.n_blocks
        self.n_features = int(ends[-1])
        self.n_bit_features = int(sizes[-n_bit_genes:].sum())
        self.n_arch_features = self.n_features - self.n_bit_features

    def features(self, genes: np.ndarray) -> np.ndarray:
        """Return one-hot features, float32 of shape (N, n_features), for genes (N, n_genes).

        The first `n_arch_features` describe the architecture, the rest the bits. Raises
        ApqError when the genes are not of this space.
        """
        self.space.check_genes(genes)
        n = len(genes)
        features = np.zeros((n, self.n_features), dtype=np.float32)
        positions = genes[:, self.space.n_stages :] + self.starts
        positions += self.n_features * np.arange(n)[:, None]
        active = np.tile(self.space.active(genes), len(BLOCK_FIELDS))
        features.reshape(-1)[positions] = active
        return features

    def positions(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where the features are 1: of the architecture (N, 2 n_blocks), the bits (N, 4 n).

        Each counted within its part; in a block that is left out the position is one beyond the
        part's last. Raises ApqError when the genes are not of this space.
        """
        self.space.check_genes(genes)
        positions = genes[:, self.space.n_stages :] + self.starts
        n_arch_genes = (len(BLOCK_FIELDS) - len(BIT_FIELDS)) * self.space.n_blocks
        arch, bits = positions[:, :n_arch_genes], positions[:, n_arch_genes:] - self.n_arch_features
        idle = ~self.space.active(genes)
        if idle.any():
            arch[np.tile(idle, 2)] = self.n_arch_features
            bits[np.tile(idle, 4)] = self.n_bit_features
        return arch, bits
