"""The same problem given to pymoo: its mixed-variable GA and NSGA-II beside this project's modes.

python -m benchmarks.search_peer [--predictor models] [--constraint 11] [--seeds 3] [--seconds 5]

Needs pymoo (pip install pymoo). All get the same score and cost functions, on whole
populations of 100, and seconds of the processor, one thread. A gene is an integer choice to
pymoo, a broken limit its constraint. NSGA-II looks for the whole front of accuracy and cost; its
best within the limit counts. Once with equal candidates (50,100), once with equal time.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from apq.cli.tables import format_table
from benchmarks.predictors import by_name
from benchmarks.search_modes import NO_LIMIT
from methods.modes import MODES
from methods.problem import Limit, SearchProblem
from methods.run import SearchRecord
from utils.latency_predictor import LatencyPredictor

CANDIDATES = 50_100
POPULATION = 100
# A cost that pymoo's arithmetic can take for what cannot run.
IMPOSSIBLE = 1e6


class Best:
    """The best feasible score so far, what it took, and when to stop."""

    def __init__(self, candidates: float, seconds: float) -> None:
        self.candidates, self.seconds = candidates, seconds
        self.accuracy, self.n, self.started = -np.inf, 0, time.process_time()

    @property
    def spent(self) -> float:
        """Processor seconds since the start."""
        return time.process_time() - self.started

    @property
    def is_over(self) -> bool:
        """Whether candidates or time are used up."""
        return self.n >= self.candidates or self.spent >= self.seconds


def run_pymoo(kind: str, problem: SearchProblem, best: Best, seed: int) -> None:
    """Run one of pymoo's algorithms until `best` says stop."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.mixed import MixedVariableGA
    from pymoo.core.problem import Problem
    from pymoo.core.variable import Integer
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling

    mixed = kind == "mixed-variable GA"
    sizes = problem.space.gene_sizes

    class Task(Problem):
        """The search problem in pymoo's terms: everything is minimised."""

        def __init__(self) -> None:
            if mixed:
                names = [f"{i:03d}" for i in range(len(sizes))]
                bounds = {
                    n: Integer(bounds=(0, int(s) - 1)) for n, s in zip(names, sizes, strict=True)
                }
                super().__init__(vars=bounds, n_obj=1, n_ieq_constr=1)
                self.names = names
            else:
                super().__init__(
                    n_var=len(sizes), n_obj=2, n_ieq_constr=1, xl=0, xu=sizes - 1, vtype=int
                )

        def _evaluate(self, x: np.ndarray, out: dict, *_: object, **__: object) -> None:
            rows = [[row[name] for name in self.names] for row in x] if mixed else x
            genes = np.asarray(rows, dtype=np.int64)
            accuracy = problem.score(genes)
            costs = np.minimum(problem.costs(genes)[:, 0], IMPOSSIBLE)
            within = costs <= problem.maximum[0]
            best.n += len(genes)
            best.accuracy = max(best.accuracy, accuracy[within].max(initial=-np.inf))
            out["F"] = -accuracy if mixed else np.stack([-accuracy, costs], axis=1)
            out["G"] = costs - problem.maximum[0]

    if mixed:
        algorithm = MixedVariableGA(pop_size=POPULATION)
    else:
        rounding = RoundingRepair()
        algorithm = NSGA2(
            pop_size=POPULATION,
            sampling=IntegerRandomSampling(),
            crossover=SBX(prob=1.0, eta=3.0, vtype=float, repair=rounding),
            mutation=PM(prob=1.0, eta=3.0, vtype=float, repair=rounding),
        )
    algorithm.setup(Task(), termination=("n_gen", 10**9), seed=seed)
    while not best.is_over:
        algorithm.next()


def run_mode(mode: str, problem: SearchProblem, best: Best, seed: int) -> None:
    """Run one of this project's modes until `best` says stop."""

    def note(record: SearchRecord) -> None:
        best.accuracy, best.n = record.best_accuracy, record.n_evaluated
        if best.is_over:
            raise KeyboardInterrupt  # the search returns its best so far

    MODES[mode].search(problem, MODES[mode].settings(seed=seed, **NO_LIMIT[mode]), note)


def main() -> None:
    """Run all with equal candidates and with equal time; print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--predictor", default="models", help="file, folder or rugged")
    parser.add_argument("--constraint", type=float, default=11.0, help="latency in ms")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the run with equal time")
    args = parser.parse_args()
    torch.set_num_threads(1)
    predictor, latency = by_name(args.predictor), LatencyPredictor("latency")
    limits = (Limit(latency, args.constraint),)
    problem = SearchProblem(
        latency.space, predictor.predict, limits, gradient_fn=predictor.gradients
    )
    contestants: dict[str, tuple[Callable, str]] = {
        "pymoo mixed-variable GA": (run_pymoo, "mixed-variable GA"),
        "pymoo NSGA-II": (run_pymoo, "NSGA-II"),
        **{f"apq {mode}": (run_mode, mode) for mode in MODES},
    }
    rows = []
    for name, (run, kind) in contestants.items():
        cells: list[str] = [name]
        for candidates, seconds in ((CANDIDATES, np.inf), (np.inf, args.seconds)):
            runs = []
            for seed in range(args.seeds):
                best = Best(candidates, seconds)
                run(kind, problem, best, seed)
                runs.append((best.accuracy, best.spent, best.n))
            accuracy, spent, n = np.median(runs, axis=0)
            cells += [f"{accuracy:.5f}", f"{n:,.0f}" if seconds < np.inf else f"{spent:.1f}"]
        rows.append(tuple(cells))
    headers = ("search", f"best of {CANDIDATES:,}", "s", f"best of {args.seconds:g} s", "subnets")
    print(f"predictor {args.predictor}, latency within {args.constraint:g} ms")
    print(format_table(headers, rows))


if __name__ == "__main__":
    main()
