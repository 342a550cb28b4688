"""How fast the search is at the paper's budget, and where its time goes.

python -m benchmarks.search [--constraint 11] [--generations 500] [--threads 1]

The predictor has random weights: its speed does not depend on them. A second thread gains
little on batches of this size, and costs much where another program uses the core.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from apq.space import PAPER_SPACE
from methods.evolution import EvolutionSettings, check_constraint, search
from utils.accuracy_predictor import AccuracyPredictor
from utils.latency_predictor import LatencyPredictor

FORWARDS = 500


class Stopwatch:
    """A function, and the seconds spent in it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Call the function and add up its time."""
        start = time.perf_counter()
        result = self.function(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def bare_forward_s(predictor: AccuracyPredictor, batch: int) -> float:
    """Return the seconds that one forward pass takes on features that are ready."""
    features = torch.rand(batch, predictor.converter.n_features)
    forward = Stopwatch(predictor)
    with torch.inference_mode():
        predictor(features)
        for _ in range(FORWARDS):
            forward(features)
    return forward.seconds / FORWARDS


def main() -> None:
    """Run one search and print its speed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--constraint", type=float, default=11.0, help="latency in ms")
    parser.add_argument("--generations", type=int, default=500, help="500 is the paper's budget")
    parser.add_argument("--threads", type=int, default=1, help="threads of the predictor")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    predictor = AccuracyPredictor().eval()
    latency = LatencyPredictor("latency")
    check_constraint(args.constraint, latency)
    cheapest = PAPER_SPACE.encode([latency.minimum()[1]])
    settings = EvolutionSettings(generations=args.generations)

    forward_s = bare_forward_s(predictor, settings.population)
    accuracy, cost = Stopwatch(predictor.predict), Stopwatch(latency.predict)
    result = search(PAPER_SPACE, accuracy, cost, args.constraint, settings, cheapest=cheapest)

    bare = settings.population / forward_s
    speed = result.n_evaluated / result.seconds
    genetics_s = result.seconds - accuracy.seconds - cost.seconds
    print(f"{result.n_evaluated} candidates in {result.seconds:.2f} s: {speed:.0f} a second")
    for name, seconds in (
        ("predictor", accuracy.seconds),
        ("cost", cost.seconds),
        ("genetics", genetics_s),
    ):
        print(f"  {name:9} {seconds:.2f} s  {seconds / result.seconds:4.0%}")
    print(f"bare predictor, batches of {settings.population}: {bare:.0f} a second")
    print(f"search / bare predictor: {speed / bare:.0%}")


if __name__ == "__main__":
    main()
