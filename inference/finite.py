"""Exact answers for Markov chains on finitely many states.

A chain is a transition matrix P, rows summing to one, (S, S). Kemeny & Snell (1960), "Finite Markov
chains"; Levin & Peres (2017), "Markov chains and mixing times".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from ppl_models.errors import DataError

_ROUNDING = 1e-8


def stationary(transition: ArrayLike) -> np.ndarray:
    """The distribution pi with pi P = pi: (S,).

    Raises ``DataError`` where there are several, since parts of the chain never meet.
    """
    p = _checked(transition)
    size = len(p)
    equations = np.vstack([p.T - np.eye(size), np.ones(size)])
    pi, _, rank, _ = np.linalg.lstsq(equations, np.append(np.zeros(size), 1.0), rcond=None)
    if rank < size:
        raise DataError(
            "transition: there are several stationary distributions, since parts of the chain "
            "never meet; give one part"
        )
    return np.maximum(pi, 0) / np.maximum(pi, 0).sum()


def total_variation(transition: ArrayLike, start: ArrayLike, steps: int) -> np.ndarray:
    """TV distance to stationarity, max_A |P(X_t in A) - pi(A)|, for t = 0, ..., steps.

    Args:
        transition: P, (S, S).
        start: the distribution of X_0, (S,) or many (..., S); or a state.
        steps: the last t.

    Returns:
        (steps + 1,), or (steps + 1, ...) for many starts.
    """
    p = _checked(transition)
    pi = stationary(p)
    law = np.asarray(start, dtype=float)
    if law.ndim == 0:
        law = np.eye(len(p))[int(law)]
    distances = []
    for _ in range(steps + 1):
        distances.append(0.5 * np.abs(law - pi).sum(-1))
        law = law @ p
    return np.stack(distances)


def worst_total_variation(transition: ArrayLike, steps: int) -> np.ndarray:
    """d(t) = max over starting states of the TV distance, t = 0, ..., steps: (steps + 1,)."""
    p = _checked(transition)
    return total_variation(p, np.eye(len(p)), steps).max(1)


def mixing_time(transition: ArrayLike, distance: float = 0.25, most: int = 1_000_000) -> int:
    """The first t at which every start is within ``distance`` of stationarity.

    Raises ``DataError`` where that takes more than ``most`` steps.
    """
    p = _checked(transition)
    pi = stationary(p)

    def worst(power: np.ndarray) -> float:
        return float(0.5 * np.abs(power - pi).sum(1).max())

    if worst(np.eye(len(p))) <= distance:
        return 0
    powers = [p]  # P^(1, 2, 4, ...): d(t) falls, so that bisection finds the first
    while worst(powers[-1]) > distance:
        if 2 ** (len(powers) - 1) > most:
            raise DataError(f"transition: the chain is not mixed after {most} steps")
        powers.append(powers[-1] @ powers[-1])
    time, power = 0, np.eye(len(p))
    for bit in reversed(range(len(powers) - 1)):
        longer = power @ powers[bit]
        if worst(longer) > distance:
            time, power = time + 2**bit, longer
    return time + 1


def eigenvalues(transition: ArrayLike) -> np.ndarray:
    """Eigenvalues by falling modulus, the first of them 1: (S,), real where P is reversible."""
    p = _checked(transition)
    if imbalance(p) < _ROUNDING:
        root = np.sqrt(np.maximum(stationary(p), 0))
        if (root > 0).all():
            symmetric = root[:, None] * p / root
            values = np.linalg.eigvalsh(0.5 * (symmetric + symmetric.T))
            return values[np.argsort(-np.abs(values), kind="stable")]
    values = np.linalg.eigvals(p)
    return values[np.argsort(-np.abs(values), kind="stable")]


def spectral_gap(transition: ArrayLike) -> float:
    """1 - |lambda_2|: the TV distance falls like (1 - gap)^t in the end."""
    values = eigenvalues(transition)
    return float(1 - np.abs(values[1])) if len(values) > 1 else 1.0


def asymptotic_variance(transition: ArrayLike, function: ArrayLike) -> float:
    """sigma^2 of the averages of a function of the state, (S,), in the central limit theorem.

    By the fundamental matrix Z = (I - P + 1 pi)^-1: sigma^2 = 2 <f, Z f> - <f, f>, f centred and
    products weighted by pi.
    """
    p = _checked(transition)
    pi = stationary(p)
    f = np.asarray(function, dtype=float)
    f = f - pi @ f
    solved = np.linalg.solve(np.eye(len(p)) - p + pi, f)
    return float(2 * pi @ (f * solved) - pi @ f**2)


def imbalance(transition: ArrayLike, distribution: ArrayLike | None = None) -> float:
    """The largest |pi_i P_ij - pi_j P_ji|: zero where the chain is reversible, in detailed balance.

    Args:
        transition: P, (S, S).
        distribution: pi, (S,), to be balanced; by default the stationary one.
    """
    p = _checked(transition)
    pi = stationary(p) if distribution is None else np.asarray(distribution, dtype=float)
    flow = pi[:, None] * p
    return float(np.abs(flow - flow.T).max())


def estimate(
    kernel: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    states: int,
    draws: int = 100_000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """The transition matrix of a random kernel on states 0, ..., S - 1, and its standard errors.

    Args:
        kernel: moves many states at once, independently: ``(states (n,), rng) -> (n,)``.
        states: S.
        draws: from each state.
        seed: of the generator.

    Returns:
        P and the standard error of each of its entries, both (S, S).

    Raises ``DataError`` where the kernel leaves the states.
    """
    rng = np.random.default_rng(seed)
    moved = np.asarray(kernel(np.repeat(np.arange(states), draws), rng)).astype(int)
    if moved.shape != (states * draws,) or moved.min() < 0 or moved.max() >= states:
        raise DataError(f"kernel: gives other than one of the states 0 to {states - 1} for each")
    start = np.repeat(np.arange(states), draws)
    p = np.bincount(start * states + moved, minlength=states**2).reshape(states, states) / draws
    return p, np.sqrt(p * (1 - p) / draws)


def balanced(
    kernel: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    distribution: ArrayLike,
    draws: int = 100_000,
    seed: int = 0,
) -> np.ndarray:
    """The z statistics of pi_i P_ij - pi_j P_ji for a random kernel: (S, S), antisymmetric.

    Standard normal where the kernel keeps detailed balance with the distribution, (S,): of S (S -
    1) / 2 of them the largest is then hardly above sqrt(2 log) of as many. A flow that is always
    zero has z = 0. Arguments as of ``estimate``.
    """
    pi = np.asarray(distribution, dtype=float)
    p, error = estimate(kernel, len(pi), draws, seed)
    flow, spread = pi[:, None] * p, pi[:, None] * error
    # at least the error of one count: a flow of zero seen once is not yet known to be zero
    least = pi[:, None] / draws * (p + p.T > 0)
    spread = np.sqrt(spread**2 + spread.T**2 + least**2 + least.T**2)
    return (flow - flow.T) / np.where(spread > 0, spread, 1.0)


def _checked(transition: ArrayLike) -> np.ndarray:
    p = np.asarray(transition, dtype=float)
    if p.ndim != 2 or p.shape[0] != p.shape[1] or not len(p):
        raise DataError(f"transition: has shape {p.shape}; give a square matrix")
    if not (np.isfinite(p).all() and (p >= 0).all()):
        raise DataError("transition: has entries that are no probabilities")
    if not np.allclose(p.sum(1), 1, atol=_ROUNDING):
        row = int(np.abs(p.sum(1) - 1).argmax())
        raise DataError(f"transition: row {row} sums to {p[row].sum():.6g}; rows must sum to 1")
    return p
