"""Markov chains whose answers are known exactly."""

import numpy as np
from scipy import stats
from scipy.signal import lfilter


def autoregressive(rho, chains, draws, seed):
    """x_t = rho x_{t-1} + noise, stationary with unit variance: sigma^2 = (1 + rho)/(1 - rho)."""
    noise = np.random.default_rng(seed).normal(size=(chains, draws)) * np.sqrt(1 - rho**2)
    noise[:, 0] /= np.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], noise, axis=1)


def finite(transition, chains, draws, seed):
    """A stationary finite chain: states (chain, draw)."""
    rng = np.random.default_rng(seed)
    transition = np.asarray(transition)
    stationary = np.linalg.matrix_power(transition, 4096)[0]
    cumulative = transition.cumsum(1)
    state = rng.choice(len(transition), p=stationary / stationary.sum(), size=chains)
    states = np.empty((chains, draws), dtype=int)
    for t, unit in enumerate(rng.uniform(size=(draws, chains))):
        state = (unit[:, None] >= cumulative[state]).sum(1).clip(max=len(transition) - 1)
        states[:, t] = state
    return states


def metropolis(random_walk):
    """Metropolis on 0..9 for pi(x) proportional to 2^-x, proposals to neighbours or uniform."""
    weights = 2.0 ** -np.arange(10)
    matrix = np.zeros((10, 10))
    for i in range(10):
        neighbours = [i - 1, i + 1] if random_walk else range(10)
        for j in neighbours:
            if 0 <= j < 10 and j != i:
                matrix[i, j] = min(1, weights[j] / weights[i]) / (2 if random_walk else 10)
        matrix[i, i] = 1 - matrix[i].sum()
    return matrix


def exact_walk(step, mean, sd, steps):
    """TV distances of random-walk Metropolis on N(0, 1) from N(mean, sd^2), on a fine grid."""
    grid = np.linspace(-8, 8, 1601)
    width = grid[1] - grid[0]
    ratio = np.exp(np.minimum(0, 0.5 * (grid[:, None] ** 2 - grid**2)))
    matrix = width * stats.norm.pdf(grid - grid[:, None], scale=step) * ratio
    matrix[np.diag_indices(len(grid))] += 1 - matrix.sum(1)
    law, pi = stats.norm.pdf(grid, mean, sd), stats.norm.pdf(grid)
    law, pi = law / law.sum(), pi / pi.sum()
    distances = []
    for _ in range(steps):
        distances.append(0.5 * np.abs(law - pi).sum())
        law = law @ matrix
    return np.array(distances)
