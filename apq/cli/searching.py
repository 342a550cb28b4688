"""One search from its request to its folder: for `search`, and for each point of `pareto`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from apq import files
from apq.cli import parser as cli
from apq.cli.found_text import budget
from apq.errors import ApqError
from apq.experiment import STOPPED, Experiment
from apq.progress import Counter, deferred_interrupt
from apq.provenance import provenance
from apq.subnet import Subnet
from methods import diagnostics, plots
from methods.problem import SearchProblem
from methods.resume import BUDGETS, Stopped
from methods.settings import SearchSettings
from utils.plots import can_plot

if TYPE_CHECKING:
    from apq.cli.search_flags import Predictor
    from methods.find import Found
    from methods.run import SearchRecord
    from utils.latency_predictor import LatencyPredictor

HISTORY, CANDIDATES = "history.csv", "candidates.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A search that was asked for, and the experiment it makes."""

    name: str
    mode: str
    problem: SearchProblem
    settings: SearchSettings
    accuracy: Predictor
    costs: Mapping[str, LatencyPredictor]
    """The model of every type of cost, those that nothing limits included."""

    @property
    def figure_of_merit(self) -> str:
        """What the search ranks subnets by."""
        is_bound = getattr(self.accuracy, "risk", 0) > 0
        return "lower bound of predicted accuracy" if is_bound else "predicted accuracy"

    def request(self) -> dict[str, Any]:
        """Return all that decides what a search finds, as plain values for JSON."""
        cost = self.costs["latency"]
        return {
            "mode": self.mode,
            "limits": {lim.cost.type: lim.maximum for lim in self.problem.limits},
            "image_size": cost.image_size,
            "accounting": cost.accounting,
            "n_classes": cost.n_classes,
            "domain_sha256": self.problem.domain.sha256,
            "predictor_sha256": self.accuracy.sha256,
            "risk": getattr(self.accuracy, "risk", None),
            "table_sha256": cost.table.sha256(),
            "settings": asdict(self.settings),
        }


def stopped_of(job: Job) -> Experiment | None:
    """Return the experiment that Ctrl-C left of the same request, None without one.

    One that was worked on since, by finetuning, is not to be replaced.
    """
    for name in (_stopped_name(job.name), job.name):
        experiment = _of_same_request(job, name, interrupted=True)
        if experiment and not experiment.checkpoint_dir.exists():
            return experiment
    return None


def finished_of(job: Job) -> Experiment | None:
    """Return the experiment of the same name if the same request found it, None without one."""
    return _of_same_request(job, job.name, interrupted=False)


def _of_same_request(job: Job, name: str, interrupted: bool) -> Experiment | None:
    experiment = Experiment(Experiment.path_for(name))
    if not (experiment.dir / "arch").is_file():
        return None
    request = {**job.request(), "interrupted": interrupted}
    try:
        report = experiment.report()
    except ApqError:
        return None  # damaged: then it is some other experiment
    is_same = all(report.get(key) == value for key, value in request.items())
    # A history's columns are the limits in their order.
    is_same = is_same and list(report["limits"]) == list(request["limits"])
    figures = {"predicted_accuracy", *diagnostics.COST_COLUMNS.values()}
    return experiment if is_same and figures <= report.keys() else None


def check_free(job: Job, stopped: Experiment | None, overwrite: bool) -> None:
    """Raise ApqError when `save` would fail, before time is spent on what it would keep."""
    is_own = stopped is not None and stopped.dir.name == job.name
    Experiment.check_free(job.name, overwrite=overwrite or is_own)
    half = Experiment(Experiment.path_for(_stopped_name(job.name)))
    if not is_own and Experiment.path_for(job.name).exists() and half.checkpoint_dir.exists():
        raise ApqError(
            f"{half.dir} is finetuned, and stopping this search would replace it: rename it first"
        )


def find(job: Job, start: np.ndarray | None = None, stopped: Experiment | None = None) -> Found:
    """Search with a bar; `start` as in `find_subnet`, `stopped` from `stopped_of`."""
    from methods.find import find_subnet

    try:
        earlier = _read_stopped(stopped, job.problem) if stopped else None
    except ApqError as error:
        raise ApqError(f"{error}; to start over, remove {stopped.dir}") from None
    if earlier:
        cli.warn(f"going on with {stopped.dir}, stopped after step {earlier.history[-1].step}")
    budget_, spent = next(item for item in BUDGETS.items() if getattr(job.settings, item[0], 0))
    total = math.ceil(getattr(job.settings, budget_))

    def done(record: SearchRecord) -> int:
        return int(getattr(record, spent))

    before = done(earlier.history[-1]) if earlier else 0
    bar = Counter(f"searching within {_limits_text(job.problem)}", total, before)
    try:
        return find_subnet(
            job.problem,
            job.mode,
            job.settings,
            lambda r: bar.update(before + done(r), total, f"{r.best_accuracy:.2%}"),
            start,
            earlier,
        )
    finally:
        bar.close()


def save(job: Job, found: Found, stopped: Experiment | None, overwrite: bool) -> Experiment:
    """Write the experiment; half a search replaces nothing but its own first half.

    Ctrl-C waits until it is written, and then stops what is not stopped yet.
    """
    is_own = stopped is not None and stopped.dir.name == job.name
    name = job.name
    if found.result.interrupted and Experiment.path_for(name).exists() and not is_own:
        name = _stopped_name(name)
    with deferred_interrupt() as interrupted:
        experiment = Experiment.create(
            name,
            found.subnet,
            found.costs[0],
            _report(job, found),
            overwrite=overwrite or is_own,
            others=_others(job, found),
        )
        is_other = stopped and stopped.dir != experiment.dir
        if is_other and not stopped.checkpoint_dir.exists():  # nor was it finetuned meanwhile
            shutil.rmtree(stopped.dir, ignore_errors=True)
    if interrupted and not found.result.interrupted:
        raise KeyboardInterrupt
    return experiment


def _limits_text(problem: SearchProblem) -> str:
    return ", ".join(budget(limit.maximum, limit.cost.unit) for limit in problem.limits)


def _stopped_name(name: str) -> str:
    return name + STOPPED


def _read_stopped(experiment: Experiment, problem: SearchProblem) -> Stopped:
    """Read what a stopped search left; raises ApqError that names a damaged file."""
    path = experiment.dir / CANDIDATES
    rows = files.read_json(path)
    with files.naming(path):
        try:
            archs = [row["arch"] for row in rows] if isinstance(rows, list) else []
        except (TypeError, KeyError):
            archs = []
        if not archs:
            raise ApqError("it must hold a list of candidates, each with an 'arch'")
        subnets = [Subnet.from_paper(arch, problem.space) for arch in archs]
    genes = problem.space.encode(subnets)
    return Stopped(genes=genes, history=read_history(experiment, problem))


def read_history(experiment: Experiment, problem: SearchProblem) -> tuple[SearchRecord, ...]:
    """Read how a search went; raises ApqError that names a damaged file."""
    path = experiment.dir / HISTORY
    text = files.read_text(path)
    with files.naming(path):
        return diagnostics.read_history(text, problem)


def _report(job: Job, found: Found) -> dict[str, Any]:
    """Return what `search.json` says of the run."""
    limit, result = job.problem.limits[0], found.result
    rows = job.costs["latency"].breakdown(found.subnet)
    (costs,) = diagnostics.all_costs([found.subnet], job.costs)
    accuracy, *_ = diagnostics.accuracy_rows(job.accuracy, result.candidates)
    return {
        **job.request(),
        "type": limit.cost.type,
        "unit": limit.cost.unit,
        "constraint": limit.maximum,
        "cost": found.costs[0],
        **accuracy,
        **costs,
        "use_of_limits": diagnostics.limit_rows(job.problem, found.costs),
        "most_time": diagnostics.heaviest(rows, "latency_ms"),
        "most_energy": diagnostics.heaviest(rows, "energy_mj"),
        "predictor": job.accuracy.card,
        "n_evaluated": result.n_evaluated,
        "n_steps": result.history[-1].step,
        "seconds": round(result.seconds, 3),
        "interrupted": result.interrupted,
        **provenance(),
    }


def _others(job: Job, found: Found) -> dict[str, bytes]:
    """Return the files beside `search.json`, by name."""
    result = found.result
    accuracies = diagnostics.accuracy_rows(job.accuracy, result.candidates)
    candidates = diagnostics.candidate_rows(result.candidates.genes, accuracies, job.costs)
    others = {
        HISTORY: diagnostics.history_csv(result.history, job.problem),
        CANDIDATES: files.json_text(candidates).encode(),
        "layers.csv": diagnostics.layers_csv(job.costs["latency"].breakdown(found.subnet)),
    }
    if can_plot():
        title = f"{job.name}: {job.mode} within {_limits_text(job.problem)}"
        others["search.png"] = plots.progress_png(result.history, title, job.figure_of_merit)
    return others
