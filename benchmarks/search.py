"""How fast the search is at the paper's budget, and where its time goes.

python -m benchmarks.search [--constraint 11] [--generations 500] [--threads 1] [--rounds 5]

The predictor has random weights: its speed does not depend on them. A second thread gains
little on batches of this size, and costs much where another program uses the core.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.predictors import rugged
from methods.evolution import EvolutionSettings, search
from methods.problem import Limit, SearchProblem
from utils.accuracy_predictor import AccuracyPredictor
from utils.latency_predictor import LatencyPredictor

FORWARDS = 200


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


def bare_forward(predictor: AccuracyPredictor, batch: int) -> float:
    """Return how many candidates a second the forward pass alone takes, on ready features."""
    features = torch.rand(batch, predictor.converter.n_features)
    forward = Stopwatch(predictor)
    with torch.inference_mode():
        for _ in range(FORWARDS):
            forward(features)
    return FORWARDS * batch / forward.seconds


def main() -> None:
    """Run searches and print their speed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--constraint", type=float, default=11.0, help="latency in ms")
    parser.add_argument("--generations", type=int, default=500, help="500 is the paper's budget")
    parser.add_argument("--threads", type=int, default=1, help="threads of the predictor")
    parser.add_argument("--rounds", type=int, default=5, help="the median one is printed")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    predictor, latency = rugged(), LatencyPredictor("latency")
    settings = EvolutionSettings(generations=args.generations)
    rounds = []
    for _ in range(args.rounds):  # side by side: another program slows both
        score = Stopwatch(predictor.predict)
        problem = SearchProblem(latency.space, score, (Limit(latency, args.constraint),))
        problem.costs_of = cost = Stopwatch(problem.costs_of)
        before = bare_forward(predictor, settings.population)
        result = search(problem, settings)
        bare = (before + bare_forward(predictor, settings.population)) / 2
        ratio = result.n_evaluated / result.seconds / bare
        rounds.append((ratio, bare, result, score.seconds, cost.seconds))
    ratio, bare, result, score_s, cost_s = sorted(rounds, key=lambda r: r[0])[len(rounds) // 2]
    speed = result.n_evaluated / result.seconds
    print(f"{result.n_evaluated} candidates in {result.seconds:.2f} s: {speed:.0f} a second")
    genetics_s = result.seconds - score_s - cost_s
    for name, seconds in (("predictor", score_s), ("cost", cost_s), ("genetics", genetics_s)):
        print(f"  {name:9} {seconds:.2f} s  {seconds / result.seconds:4.0%}")
    print(f"bare predictor, batches of {settings.population}: {bare:.0f} a second")
    print(f"search / bare predictor: {ratio:.0%}, median of {args.rounds}")


if __name__ == "__main__":
    main()
