"""What a search tells of itself: tables by hand, and history that can be read again."""

import csv
import io
from dataclasses import replace

import numpy as np
import pytest

from apq.errors import ApqError
from apq.space import PAPER_SPACE
from apq.subnet import smallest
from methods import diagnostics, plots
from methods.evolution import EvolutionSettings
from methods.problem import Limit, SearchProblem
from methods.resume import joined, rest_of
from methods.run import Candidates, SearchRecord, SearchResult
from utils.latency_predictor import LatencyPredictor


@pytest.fixture(scope="module")
def problem() -> SearchProblem:
    limits = (Limit(LatencyPredictor("latency"), 10.0), Limit(LatencyPredictor("energy"), 20.0))
    return SearchProblem(PAPER_SPACE, np.ones, limits)


def record(step: int, seconds: float = 0.5) -> SearchRecord:
    return SearchRecord(
        step=step,
        best_accuracy=0.9 + step / 300,
        best_costs=(9.0 + step / 7, 12.0),
        n_evaluated=100 * (step + 1),
        seconds=seconds,
    )


def result(*history: SearchRecord) -> SearchResult:
    genes = PAPER_SPACE.sample(np.random.default_rng(0), 2)
    return SearchResult(
        candidates=Candidates(genes, np.array([0.9, 0.8]), np.array([[9, 12], [8, 11]])),
        history=history,
        n_evaluated=history[-1].n_evaluated,
        seconds=history[-1].seconds,
        interrupted=False,
    )


def test_history_is_read_as_it_was_written(problem):
    history = tuple(record(step, step / 3) for step in range(5))
    text = diagnostics.history_csv(history, problem).decode()
    assert text.splitlines()[0] == "step,n_evaluated,seconds,best_accuracy,latency_ms,energy_mj"
    assert diagnostics.read_history(text, problem) == history


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "no history"),
        (lambda text: text.splitlines()[0], "no history"),
        (lambda text: text.replace("energy_mj", "bitops"), "no history"),
        (lambda text: text.replace("100,", "many,"), "damaged"),
        (lambda text: text + "7,8\n", "damaged"),
        (lambda text: text.replace("\n1,", "\n-1,"), "damaged: it counts below 0"),
    ],
)
def test_a_damaged_history_is_refused(problem, change, message):
    text = diagnostics.history_csv([record(0), record(1)], problem).decode()
    with pytest.raises(ApqError, match=message):
        diagnostics.read_history(change(text), problem)


def test_what_is_left_of_each_limit_by_hand(problem):
    latency, energy = diagnostics.limit_rows(problem, (9.5, 15.0))
    assert (latency["slack"], latency["slack_share"]) == (0.5, pytest.approx(0.05))
    assert (energy["slack"], energy["slack_share"]) == (5.0, 0.25)
    assert (latency["tightest"], energy["tightest"]) == (True, False)
    assert latency["least"] == pytest.approx(2.95915)
    assert energy["unit"] == "mJ"


def test_layers_and_the_heaviest_of_them():
    subnet = smallest().with_bits(8)
    rows = LatencyPredictor("latency").breakdown(subnet)
    table = list(csv.DictReader(io.StringIO(diagnostics.layers_csv(rows).decode())))
    assert len(table) == len(rows) == 3 * len(subnet.active_blocks) + 2
    assert sum(float(row["latency_share"]) for row in table) == pytest.approx(1)
    assert [row["layer"] for row in table[:2]] == ["head", "expand"]
    top = diagnostics.heaviest(rows, "energy_mj", n=3)
    energies = sorted((row.energy_mj for row in rows), reverse=True)
    assert [row["energy_mj"] for row in top] == energies[:3]
    assert top[0]["share"] == pytest.approx(energies[0] / sum(energies))


def test_a_table_that_knows_no_energies_has_no_shares_of_them():
    rows = LatencyPredictor("latency").breakdown(smallest(PAPER_SPACE).with_bits(8))
    rows = [replace(row, energy_mj=0.0) for row in rows]
    table = list(csv.DictReader(io.StringIO(diagnostics.layers_csv(rows).decode())))
    assert {float(row["energy_share"]) for row in table} == {0.0}
    assert sum(float(row["latency_share"]) for row in table) == pytest.approx(1)
    assert [top["share"] for top in diagnostics.heaviest(rows, "energy_mj", n=3)] == [0.0] * 3


def test_what_is_left_of_a_budget():
    settings = EvolutionSettings(generations=500, seconds=10.0, seed=3)
    rest = rest_of(settings, record(120, seconds=4.0))
    assert rest.generations == 380
    assert rest.seconds == 6.0
    assert rest.seed != 3
    assert rest == rest_of(settings, record(120, seconds=4.0))
    assert rest.seed != rest_of(settings, record(121, seconds=4.0)).seed
    over = rest_of(settings, record(500, seconds=11.0))
    assert over.generations == 1  # the least that settings allow
    assert over.seconds > 0  # 0 would stand for no limit
    assert rest_of(replace(settings, seconds=0.0), record(5)).seconds == 0


def test_two_halves_are_one_history():
    first = (record(0, 0.1), record(1, 0.2), record(2, 0.3))
    whole = joined(first, result(record(0, 0.1), record(1, 0.4)))
    assert whole.history[:3] == first
    last = whole.history[3]
    assert len(whole.history) == 4
    assert (last.step, last.n_evaluated, last.seconds) == (3, 500, pytest.approx(0.7))
    assert whole.n_evaluated == 500


@pytest.mark.plots
def test_plots_are_png_files():
    history = [record(step) for step in range(3)]
    curves = [
        plots.Curve(label="tight", points=((5.0, 0.8), (7.0, 0.9))),
        plots.Curve(label="loose", points=((5.0, 0.85),)),
    ]
    for png in (plots.progress_png(history, "a", "x"), plots.front_png(curves, "ms", "b", "x")):
        assert png.startswith(b"\x89PNG")
        assert len(png) > 5000
