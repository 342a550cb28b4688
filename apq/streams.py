"""Random numbers of one seed for several ends, which must not be the same ones."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What random numbers are for; its number stands before the seed."""

    VALIDATION_IMAGES = 1
    CROPS_IN_MEMORY = 2
    ORDER_OF_IMAGES = 3
    KEPT_IMAGES = 4
    RANDAUGMENT = 5
    REFERENCE_SUBNETS = 6
    CROPS_OF_FILES = 7

    def generator(self, *key: int) -> np.random.Generator:
        """Return a generator of its own for a seed, and what else tells one draw from another."""
        return np.random.default_rng(self.seeds(*key))

    def seeds(self, *key: int) -> np.random.SeedSequence:
        """Return what such a generator is made of."""
        return np.random.SeedSequence((self, *key))
