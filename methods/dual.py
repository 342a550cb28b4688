"""Whether several limits can be kept at once: a subnet that does, or a proof that none can.

With costs that add up, a weighted sum of them has an exact minimum over the domain. If, for some
weights that sum to 1, even the least weighted excess over the limits is positive, then no subnet
keeps them all (Lagrangian duality). Multiplicative weights look for such weights, and pass subnets
on the way that are nearly as good as can be; a descent over whole blocks mends the best of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from apq.domain import Domain

ROUNDS = 150
# Of the relative excesses; falls with the root of the round.
STEP = 4.0
POLISH_SWEEPS = 20


@dataclass(frozen=True)
class Feasibility:
    """What is known of a set of limits; excesses are relative, (cost - limit) / limit."""

    genes: np.ndarray
    """The subnet (1, n_genes) whose largest excess is the smallest found."""
    excess: float
    """Its largest excess; the limits can be kept if it is 0 or less."""
    bound: float
    """No subnet's largest excess is smaller than this."""
    weights: np.ndarray
    """The weights (n_limits,) that prove the bound."""


def find_feasible(
    domain: Domain, option_costs: np.ndarray, fixed_costs: np.ndarray, maximum: np.ndarray
) -> Feasibility:
    """Look for a subnet within all limits; stops as soon as one, or a proof, is found.

    `option_costs` has shape (n_limits, n_options), the others (n_limits,).
    """
    shares = option_costs / maximum[:, None]
    # Where it cannot run, a weight that has become 0 would make no number of an infinite cost.
    usable = domain.allowed_options & np.isfinite(shares).all(axis=0)
    known = np.where(usable, shares, 0.0)
    constants = fixed_costs / maximum - 1
    logs = np.zeros(len(maximum))  # as they are, weights could all become 0
    best: Feasibility | None = None
    for round_ in range(1, ROUNDS + 1):
        weights = np.exp(logs - logs.max())
        weights /= weights.sum()
        genes = domain.least(np.where(usable, weights @ known, np.inf))
        excesses = _excesses(domain, genes, shares, constants)
        best = _better(best, genes, float(excesses.max()), float(weights @ excesses), weights)
        if best.excess <= 0 or best.bound > 0:
            return best
        logs += STEP / np.sqrt(round_) * excesses
    genes, excess = _polish(domain, best.genes, shares, constants)
    return Feasibility(genes, excess, best.bound, best.weights)


def _better(
    best: Feasibility | None, genes: np.ndarray, excess: float, bound: float, weights: np.ndarray
) -> Feasibility:
    if best is None:
        return Feasibility(genes, excess, bound, weights)
    if excess >= best.excess:
        genes, excess = best.genes, best.excess
    if bound <= best.bound:
        bound, weights = best.bound, best.weights
    return Feasibility(genes, excess, bound, weights)


def _excesses(
    domain: Domain, genes: np.ndarray, shares: np.ndarray, constants: np.ndarray
) -> np.ndarray:
    numbers = domain.options.numbers(genes)[0]
    active = numbers < domain.options.n_options
    return shares[:, numbers[active]].sum(axis=1) + constants


def _polish(
    domain: Domain, genes: np.ndarray, shares: np.ndarray, constants: np.ndarray
) -> tuple[np.ndarray, float]:
    """Exchange one block's option at a time while the largest excess falls."""
    genes = genes.copy()
    fields = genes[0, domain.space.n_stages :].reshape(-1, domain.space.n_blocks)
    active = np.flatnonzero(domain.space.active(genes)[0])
    numbers = domain.options.numbers(genes)[0]
    for _ in range(POLISH_SWEEPS):
        before = numbers.copy()
        for b in active:
            part = domain.options.slices[b]
            rest = shares[:, numbers[active[active != b]]].sum(axis=1) + constants
            worst = (shares[:, part] + rest[:, None]).max(axis=0)
            worst[~domain.allowed_options[part]] = np.inf
            if worst.min() < worst[numbers[b] - part.start]:
                numbers[b] = part.start + int(worst.argmin())
                fields[:, b] = domain.options.genes_at(b, numbers[b])
        if (numbers == before).all():
            break
    return genes, float(_excesses(domain, genes, shares, constants).max())
