"""Measures subnets with the supernet's weights: the pairs a predictor learns from."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from apq.interrupts import Interruption, deferred_interrupt
from apq.progress import Counter
from apq.provenance import read_card
from apq.space import SearchSpace
from apq.subnet import Subnet
from elastic_nn.networks import OnceForAllNet
from imagenet_codebase.data_providers import DataProvider
from imagenet_codebase.run_manager import distributed
from methods.prediction.cards import KINDS, N_NOISE, NOISE, SAMPLING_NOISE
from methods.prediction.draws import draw_subnets
from methods.prediction.images import Measurer
from methods.prediction.pairs import IMAGE_DIGESTS, PairLog, split_pairs
from methods.prediction.settings import MeasuringSettings

NOISE_FACTS = (NOISE, SAMPLING_NOISE, N_NOISE)


@dataclass(frozen=True, kw_only=True)
class Quota:
    """How many subnets of one kind a file of pairs shall hold, and where they come from."""

    what: str
    """As a bar names them."""
    wanted: int
    includes: Callable[[Subnet], bool]
    """Whether a subnet is of this kind."""
    draw: Callable[[int], Iterator[Subnet]]
    """Given how many there are, yields distinct subnets without end; those that are there are
    skipped."""
    facts: Callable[[Mapping[Subnet, float]], Mapping[str, Any]] = lambda new: {}
    """Given the pairs measured in this sitting, one or more: what the card says of it."""
    fact_names: tuple[str, ...] = ()
    """Those of `facts`, which stay as they are in a sitting that measures nothing."""


def random_quotas(space: SearchSpace, n_full: int, n_quantized: int, seed: int) -> list[Quota]:
    """Return the quotas of random subnets, in full precision and quantized."""

    def quota(what: str, wanted: int, quantized: bool) -> Quota:
        return Quota(
            what=what,
            wanted=wanted,
            includes=lambda subnet: subnet.quantized == quantized,
            draw=lambda _: draw_subnets(space, seed, quantized),
        )

    return [
        quota("full-precision pairs", n_full, False),
        quota("quantized pairs", n_quantized, True),
    ]


def collect(
    net: OnceForAllNet,
    data: DataProvider,
    path: Path,
    quotas: Sequence[Quota],
    facts: dict[str, Any],
    settings: MeasuringSettings,
    n_noise: int = 0,
) -> bool:
    """Measure subnets on the validation split until the file fills its quotas.

    At the end `n_noise` subnets of each kind are measured once more to tell the noise
    (`noise_floor`), which the card then holds, and that of the split's images
    (`Measurer.sampling_noise`); what it holds already stays where nothing new is known. `facts`
    name the supernet; with those of the data they are kept beside the pairs. Several processes take
    turns to measure; the first one writes. Goes on where an earlier call was stopped; returns False
    when Ctrl-C stopped this one. Raises ApqError when the file holds pairs that something else
    measured.
    """
    started = time.perf_counter()
    measured_with = {
        **facts,
        "dataset": data.name,
        "image_size": data.image_size,
        "n_images": min(settings.n_val_images or math.inf, data.n_images("val")),
        "n_bn_images": settings.n_bn_images,
        "n_draws": settings.n_draws,
        "disputed": settings.leaves_out(data.n_images("val")),
        "own_images": True,  # for batch statistics; once all subnets shared theirs
        "seed": settings.seed,
        **{name: data.facts()[name] for name in IMAGE_DIGESTS},
    }
    with contextlib.ExitStack() as held:
        log, pairs, before, card = _open(path, measured_with, net.space, held)
        is_full = all(sum(map(q.includes, pairs)) >= q.wanted for q in quotas)
        lacks_noise = bool(n_noise and pairs and not _tells_noise(card, n_noise))
        measurer = None
        # Pairs that a kill left in the log are new, too.
        if not is_full or lacks_noise or (n_noise and len(pairs) > len(before)):
            measurer = Measurer(net, data, settings)
        interrupted = held.enter_context(deferred_interrupt(distributed.is_first()))
        finished = all(_fill(quota, pairs, measurer, log, interrupted) for quota in quotas)
        new = {subnet: top1 for subnet, top1 in pairs.items() if subnet not in before}
        noise: dict[str, Any] = {}
        if finished and n_noise and pairs and (new or lacks_noise):
            noise = _noise_facts(pairs, measurer, n_noise, interrupted)
            if not noise:  # Ctrl-C; what the card tells is of fewer pairs
                finished = False
                card = {name: value for name, value in card.items() if name not in NOISE_FACTS}
        if log:
            _finish(log, quotas, new, noise, card, (time.perf_counter() - started) / 60)
    return finished


def _open(
    path: Path, measured_with: dict[str, Any], space: SearchSpace, held: contextlib.ExitStack
) -> tuple[PairLog | None, dict[Subnet, float], set[Subnet], dict[str, Any]]:
    """Return the log (in the first process), the pairs known, those of the card, and the card.

    Others were left in the log by a kill. The log is closed with `held`.
    """
    log: PairLog | None = None

    def read() -> tuple[dict[Subnet, float], set[Subnet], dict[str, Any]]:
        nonlocal log
        log = held.enter_context(contextlib.closing(PairLog(path, measured_with, space)))
        return dict(log.pairs), log.written, read_card(path)

    pairs, written, card = distributed.from_first(read)
    return log, pairs, written, card


def _finish(
    log: PairLog,
    quotas: Sequence[Quota],
    new: Mapping[Subnet, float],
    noise: Mapping[str, Any],
    card: Mapping[str, Any],
    minutes: float,
) -> None:
    """Write the pairs, with a card that keeps what an earlier one tells and nothing new is of."""
    told = dict(noise)
    for quota in quotas if new else ():
        told |= quota.facts(new)
    names = (*NOISE_FACTS, *(name for quota in quotas for name in quota.fact_names))
    log.finish(minutes, {name: card[name] for name in names if name in card}, told)


def _fill(
    quota: Quota,
    pairs: dict[Subnet, float],
    measurer: Measurer | None,
    log: PairLog | None,
    interrupted: Interruption,
) -> bool:
    """Measure subnets until there are as many as wanted; returns False when Ctrl-C came first.

    What is measured goes into `pairs` and, in the first process, the log. Where there are enough,
    `measurer` may be missing.
    """
    have = sum(map(quota.includes, pairs))
    new = (subnet for subnet in quota.draw(have) if subnet not in pairs)
    todo = itertools.islice(new, max(0, quota.wanted - have))
    stopped = False
    with Counter(quota.what if distributed.is_first() else "", quota.wanted, have) as bar:
        for subnet, top1 in distributed.each(todo, lambda subnet: measurer.top1(subnet)):
            pairs[subnet] = round(100 * top1, 4)
            if log:
                log.add(subnet, pairs[subnet])
            bar.step(f"{top1:.1%}")
            if stopped := any(distributed.any_of(bool(interrupted))):
                break
    return not stopped


def _tells_noise(card: Mapping[str, Any], n_noise: int) -> bool:
    """Whether a card tells all of the noise, by so many subnets."""
    # Once it was one number for both kinds, and nothing was said of other images than the split's.
    tells = all(isinstance(card.get(name), dict) for name in (NOISE, SAMPLING_NOISE))
    return tells and card.get(N_NOISE) == n_noise


def _noise_facts(
    pairs: Mapping[Subnet, float], measurer: Measurer, n: int, interrupted: Interruption
) -> dict[str, Any]:
    """Measure the noise; return what a card says of it (`NOISE_FACTS`), nothing after Ctrl-C."""
    points = {}
    for kind, some in zip(KINDS, split_pairs(pairs), strict=True):
        if some:
            points[kind] = noise_floor(some, n, measurer.again, interrupted)
            if points[kind] is None:
                return {}
    return {NOISE: points, SAMPLING_NOISE: measurer.sampling_noise(), N_NOISE: n}


def noise_floor(
    pairs: Mapping[Subnet, float],
    n: int,
    again: Callable[[Subnet], tuple[float, float]],
    interrupted: Interruption | None = None,
) -> float | None:
    """Return how far one measurement strays: a standard deviation, in points of accuracy.

    n subnets of the pairs, evenly taken, are measured `again` (`Measurer.again`). Two measurements
    differ by sqrt(2) times what batch statistics do to one; what they have in common is off by as
    much as the second is off from that on all images. None when it was interrupted.
    """
    subnets = list(pairs)
    places = np.linspace(0, len(subnets) - 1, min(n, len(subnets))).astype(int)
    chosen = [subnets[place] for place in places]
    off = []
    with Counter("once more" if distributed.is_first() else "", len(chosen)) as bar:
        for subnet, (top1, exact) in distributed.each(chosen, again):
            off.append((100 * top1 - pairs[subnet], 100 * (top1 - exact)))
            bar.step()
            if any(distributed.any_of(bool(interrupted))):
                break
    if len(off) < len(chosen):
        return None
    by_statistics, by_choice = np.mean(np.square(off), axis=0)
    return float(np.sqrt(by_statistics / 2 + by_choice))
