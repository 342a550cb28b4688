"""Searched subnets against random ones of the same cost, all of them measured alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from apq.errors import ApqError
from apq.experiment import Experiment
from apq.space import SearchSpace
from apq.subnet import Subnet
from lut.layers import IMAGENET_CLASSES
from methods.validation.bench import Bench, Outcome
from utils.latency_predictor import LatencyPredictor

TOLERANCE = 0.02
DRAW_AT_ONCE = 8192
DRAWS = 40


@dataclass(frozen=True, kw_only=True)
class Contest:
    """A searched subnet and what bounds the random ones that it is compared with."""

    experiment: Experiment
    cost: LatencyPredictor
    maximum: float
    """In the cost's unit; random subnets cost this much or up to 2 % less."""

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.experiment.dir.name

    @property
    def rivals(self) -> str:
        """What the names of its random subnets' results begin with: equal limits share them."""
        cost = self.cost
        name = f"random-{cost.type}-{float(self.maximum)!r}-{cost.image_size}px-{cost.accounting}"
        # The classifier is the one layer that depends on the classes.
        return name if cost.n_classes == IMAGENET_CLASSES else f"{name}-{cost.n_classes}classes"


@dataclass(frozen=True, kw_only=True)
class ContestResult:
    """What came of a contest."""

    contest: Contest
    searched: Outcome
    subnets: tuple[Subnet, ...]
    """The random ones."""
    rivals: tuple[Outcome, ...]
    """What became of them."""

    @property
    def won(self) -> bool:
        """Whether the searched subnet is the most accurate on the test images."""
        return all(self.searched.test_top1 > rival.test_top1 for rival in self.rivals)


def random_subnets(
    space: SearchSpace, cost: LatencyPredictor, maximum: float, n: int, seed: int
) -> list[Subnet]:
    """Draw n distinct quantized subnets that cost `maximum` or up to 2 % less.

    Half the draws are uniform, half lean to the cheap or the expensive end, where uniform ones
    never come. Raises ApqError when they hardly ever cost that.
    """
    rng = np.random.default_rng(seed)
    n_draws = DRAWS if maximum >= cost.minimum()[0] else 0
    found: dict[bytes, np.ndarray] = {}
    for _ in range(n_draws):
        half = DRAW_AT_ONCE // 2
        genes = np.concatenate([space.sample(rng, half), space.sample_spread(rng, half)])
        costs = cost.predict(genes)
        genes = genes[(costs <= maximum) & (costs > (1 - TOLERANCE) * maximum)]
        # In random order: otherwise all might come from the first half.
        for row in rng.permutation(space.canonical(genes)):
            found.setdefault(row.tobytes(), row)
        if len(found) >= n:
            return space.decode(np.stack(list(found.values())[:n]))
    raise ApqError(
        f"random subnets hardly ever cost about {maximum:g} {cost.unit}: choose a budget further "
        f"from the cheapest and the most expensive subnet"
    )


def compare(
    bench: Bench, contests: Sequence[Contest], n_random: int, seed: int
) -> Iterator[ContestResult | None]:
    """Yield each contest's result when all of its subnets are measured; None when stopped.

    The searched ones come first, so that their experiments, where they have no checkpoint, get
    their finetuned weights before hours are spent on the random ones.
    """
    subnets = [contest.experiment.subnet() for contest in contests]
    # Where random subnets never come is told before anything is measured.
    all_drawn = [
        random_subnets(subnet.space, contest.cost, contest.maximum, n_random, seed)
        for contest, subnet in zip(contests, subnets, strict=True)
    ]
    found = []
    for contest, subnet in zip(contests, subnets, strict=True):
        searched = bench.measure(f"{contest.name}-searched", subnet, contest.experiment)
        if searched is None:
            yield None
            return
        found.append(searched)
    for contest, searched, drawn in zip(contests, found, all_drawn, strict=True):
        rivals = []
        for i, subnet in enumerate(drawn, start=1):
            rival = bench.measure(f"{contest.rivals}-{i}", subnet)
            if rival is None:
                yield None
                return
            rivals.append(rival)
        yield ContestResult(
            contest=contest, searched=searched, subnets=tuple(drawn), rivals=tuple(rivals)
        )
