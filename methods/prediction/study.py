"""How many quantized pairs a predictor needs, from scratch and by transfer (the paper's figure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apq import files
from apq.progress import Counter
from apq.subnet import Subnet
from methods.prediction.fit import Fitting, Quality
from methods.prediction.pairs import hold_out, split_pairs
from utils.plots import COLOURS, NO_PLOT, can_plot, new_row, to_png

SIZES = (100, 200, 500, 1000, 2000)
SEEDS = 5
TABLE_NAME, FIGURE_NAME = "predictor-transfer.csv", "predictor-transfer.png"
FIGURES = {"rmse": "RMSE (points)", "kendall_tau": "Kendall tau", "band_tau": "tau at equal cost"}
FROM_SCRATCH, BY_TRANSFER = "from scratch", "by transfer"


@dataclass(frozen=True, kw_only=True)
class StudyRow(Quality):
    """The figures of one predictor: by precise subnets where there are some, else by pairs held
    out under its seed."""

    kind: str
    """`from scratch` or `by transfer`."""
    seed: int


def run_study(
    full: Mapping[Subnet, float],
    quantized: Mapping[Subnet, float],
    fitting: Fitting,
    sizes: Sequence[int] = SIZES,
    n_seeds: int = SEEDS,
    precise: Mapping[Subnet, float] | None = None,
) -> list[StudyRow]:
    """Train both kinds on growing numbers of quantized pairs, under several seeds.

    Each seed holds other pairs out, the same for all sizes; sizes beyond what is left become all
    of it. The transfer starts from a full-precision predictor of the same seed. `precise` as in
    `fit_all`.
    """
    rows, settings = [], fitting.settings
    precise_full, precise_quantized = split_pairs(precise or {})
    n_left = len(hold_out(quantized, settings.held_out, settings.seed, precise_quantized)[0])
    sizes = sorted({min(size, n_left) for size in sizes})
    with Counter("study", n_seeds * len(sizes)) as bar:
        for seed in range(settings.seed, settings.seed + n_seeds):
            seeded = fitting.with_settings(seed=seed)
            source = seeded.fit(full, False, precise=precise_full).predictor
            for n_train in sizes:
                for kind, start in ((FROM_SCRATCH, None), (BY_TRANSFER, source)):
                    result = seeded.fit(
                        quantized, True, start, n_train=n_train, precise=precise_quantized
                    )
                    figures = result.precise or result.quality
                    rows.append(StudyRow(kind=kind, seed=seed, **asdict(figures)))
                bar.step(f"seed {seed}")
    return rows


def summarize(rows: Sequence[StudyRow]) -> list[tuple[str, ...]]:
    """Return a row of text for each kind and size: mean and standard deviation over the seeds."""
    table = []
    for kind in (FROM_SCRATCH, BY_TRANSFER):
        for n_train in sorted({row.n_train for row in rows}):
            chosen = [row for row in rows if (row.kind, row.n_train) == (kind, n_train)]
            cells = []
            for figure in FIGURES:
                values = np.array([getattr(row, figure) for row in chosen])
                cells.append(f"{values.mean():.3f} ± {values.std():.3f}")
            table.append((kind, str(n_train), *cells))
    return table


def write_study(rows: Sequence[StudyRow], folder: Path) -> list[Path]:
    """Write the rows as CSV and, where matplotlib is installed, draw them; returns the paths."""
    table = folder / TABLE_NAME
    files.write_text(table, files.table_csv(map(_short, rows)))
    if not can_plot():
        print(NO_PLOT)
        return [table]
    picture = folder / FIGURE_NAME
    files.write_bytes(picture, _png(rows))
    return [table, picture]


def _short(row: StudyRow) -> dict[str, Any]:
    """Return a row's values, figures with six digits."""
    return {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()}


def _png(rows: Sequence[StudyRow]) -> bytes:
    figure, all_axes = new_row(len(FIGURES))
    sizes = sorted({row.n_train for row in rows})
    for axes, (name, label) in zip(all_axes, FIGURES.items(), strict=True):
        for kind, colour in zip((FROM_SCRATCH, BY_TRANSFER), COLOURS, strict=False):
            values = np.array(
                [
                    [getattr(r, name) for r in rows if (r.kind, r.n_train) == (kind, n)]
                    for n in sizes
                ]
            )
            style = {"color": colour, "marker": "o", "capsize": 3}
            axes.errorbar(sizes, values.mean(1), values.std(1), label=kind, **style)
        axes.set(xlabel="quantized pairs", ylabel=label, xscale="log")
        axes.set_xticks(sizes, [str(n) for n in sizes])
        axes.minorticks_off()
    all_axes[-1].legend(frameon=False)
    return to_png(figure)
