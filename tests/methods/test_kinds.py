"""The predictors that are used in the end."""

import numpy as np
import pytest

from apq.space import PAPER_SPACE
from methods.prediction.cards import FULL, SEARCHED, TRANSFER
from methods.prediction.fit import Fitting
from methods.prediction.kinds import fit_all
from methods.prediction.settings import FitSettings

FITTING = Fitting(FitSettings(n_steps=5, batch_size=32), lambda genes: genes.sum(axis=1))


def random_pairs(n, seed, quantized):
    rng = np.random.default_rng(seed)
    subnets = PAPER_SPACE.decode(PAPER_SPACE.sample(rng, n))
    subnets = subnets if quantized else [subnet.full_precision() for subnet in subnets]
    return dict(zip(subnets, rng.uniform(60, 90, n).tolist(), strict=True))


@pytest.mark.parametrize("n_searched", [0, 20])
def test_they_have_learned_from_all_pairs_and_by_transfer(n_searched):
    full, quantized = random_pairs(25, 0, False), random_pairs(25, 1, True)
    searched = random_pairs(n_searched, 2, True)
    fits = fit_all(full, quantized, searched, FITTING)
    source = FITTING.learn(full, False)
    last = FITTING.learn({**quantized, **searched}, True, source)
    wanted = {FULL: source, SEARCHED if n_searched else TRANSFER: last}
    assert set(fits.to_use) == set(wanted)
    genes = PAPER_SPACE.sample(np.random.default_rng(3), 20)
    for name, predictor in wanted.items():
        assert fits.to_use[name].predict(genes) == pytest.approx(predictor.predict(genes))
