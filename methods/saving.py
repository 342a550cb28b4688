"""What a search leaves in its experiment's folder, and finding it again."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from apq import files
from apq.errors import ApqError
from apq.experiment import STOPPED, Experiment
from apq.interrupts import deferred_interrupt
from apq.provenance import provenance
from apq.subnet import Subnet
from lut.costs import COSTS
from methods import diagnostics, plots
from methods.problem import SearchProblem
from methods.resume import Stopped
from utils.plots import can_plot

if TYPE_CHECKING:
    from methods.find import Found
    from methods.request import SearchRequest
    from methods.run import SearchRecord
    from utils.latency_predictor import CostRow

HISTORY, CANDIDATES = "history.csv", "candidates.json"


def stopped_of(request: SearchRequest) -> Experiment | None:
    """Return the experiment that Ctrl-C left of the same request, None without one.

    One that was worked on since, by finetuning, is not to be replaced.
    """
    for name in (_stopped_name(request.name), request.name):
        experiment = _of_same_request(request, name, interrupted=True)
        if experiment and not experiment.checkpoint_dir.exists():
            return experiment
    return None


def finished_of(request: SearchRequest) -> Experiment | None:
    """Return the experiment of the same name if the same request found it, None without one."""
    return _of_same_request(request, request.name, interrupted=False)


def _of_same_request(request: SearchRequest, name: str, interrupted: bool) -> Experiment | None:
    experiment = Experiment(Experiment.path_for(name))
    if not (experiment.dir / "arch").is_file():
        return None
    facts = {**request.facts(), "interrupted": interrupted}
    try:
        report = experiment.report()
    except ApqError:
        return None  # damaged: then it is some other experiment
    is_same = all(report.get(key) == value for key, value in facts.items())
    # A history's columns are the limits in their order.
    is_same = is_same and list(report["limits"]) == list(facts["limits"])
    figures = {"predicted_accuracy", *(cost.column for cost in COSTS.values())}
    return experiment if is_same and figures <= report.keys() else None


def check_free(request: SearchRequest, stopped: Experiment | None, overwrite: bool) -> None:
    """Raise ApqError when `save` would fail, before time is spent on what it would keep."""
    is_own = stopped is not None and stopped.dir.name == request.name
    Experiment.check_free(request.name, overwrite=overwrite or is_own)
    half = Experiment(Experiment.path_for(_stopped_name(request.name)))
    exists = Experiment.path_for(request.name).exists()
    if not is_own and exists and half.checkpoint_dir.exists():
        raise ApqError(
            f"{half.dir} is finetuned, and stopping this search would replace it: rename it first"
        )


def read_stopped(experiment: Experiment, problem: SearchProblem) -> Stopped:
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


def save(
    request: SearchRequest, found: Found, stopped: Experiment | None, overwrite: bool
) -> Experiment:
    """Write the experiment; half a search replaces nothing but its own first half.

    Ctrl-C waits until it is written, and then stops what is not stopped yet.
    """
    is_own = stopped is not None and stopped.dir.name == request.name
    name = request.name
    if found.result.interrupted and Experiment.path_for(name).exists() and not is_own:
        name = _stopped_name(name)
    with deferred_interrupt() as interrupted:
        layers = request.costs["latency"].breakdown(found.subnet)
        accuracies = diagnostics.accuracy_rows(request.accuracy, found.result.candidates)
        experiment = Experiment.create(
            name,
            found.subnet,
            found.costs[0],
            _report(request, found, layers, accuracies[0]),
            overwrite=overwrite or is_own,
            others=_others(request, found, layers, accuracies),
        )
        is_other = stopped and stopped.dir != experiment.dir
        if is_other and not stopped.checkpoint_dir.exists():  # nor was it finetuned meanwhile
            shutil.rmtree(stopped.dir, ignore_errors=True)
    if interrupted and not found.result.interrupted:
        raise KeyboardInterrupt
    return experiment


def _stopped_name(name: str) -> str:
    return name + STOPPED


def _report(
    request: SearchRequest, found: Found, layers: Sequence[CostRow], accuracy: Mapping[str, float]
) -> dict[str, Any]:
    """Return what `search.json` says of the run."""
    limit, result = request.problem.limits[0], found.result
    (costs,) = diagnostics.all_costs([found.subnet], request.costs)
    return {
        **request.facts(),
        "type": limit.cost.type,
        "unit": limit.cost.unit,
        "constraint": limit.maximum,
        "cost": found.costs[0],
        **accuracy,
        **costs,
        "use_of_limits": diagnostics.limit_rows(request.problem, found.costs),
        "most_time": diagnostics.heaviest(layers, "latency_ms"),
        "most_energy": diagnostics.heaviest(layers, "energy_mj"),
        "predictor": request.accuracy.card,
        "n_evaluated": result.n_evaluated,
        "n_steps": result.history[-1].step,
        "seconds": round(result.seconds, 3),
        "interrupted": result.interrupted,
        **provenance(),
    }


def _others(
    request: SearchRequest,
    found: Found,
    layers: Sequence[CostRow],
    accuracies: Sequence[Mapping[str, float]],
) -> Mapping[str, bytes]:
    """Return the files beside `search.json`, by name."""
    result = found.result
    candidates = diagnostics.candidate_rows(result.candidates.genes, accuracies, request.costs)
    others = {
        HISTORY: diagnostics.history_csv(result.history, request.problem),
        CANDIDATES: files.json_text(candidates).encode(),
        "layers.csv": diagnostics.layers_csv(layers),
    }
    if can_plot():
        title = f"{request.name}: {request.mode} within {request.limits_text}"
        others["search.png"] = plots.progress_png(result.history, title, request.figure_of_merit)
    return others
