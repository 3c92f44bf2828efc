"""What the unadjusted Langevin algorithm gets wrong, and in which order of its step size.

    python -m benchmarks.langevin [--chains 2000] [--draws 2000] [--seed 0]

Two densities of one dimension: a normal, for which the variance of ULA is 1 / (1 - e^2 / 4) in
closed form, and a skewed one, whose moments are had by quadrature. For every step size: the bias
of E x and E x^2 by ULA and by MALA with their Monte-Carlo errors, beside the exact bias of ULA, an
independent computation of the stationary law of its kernel on a fine grid. Then the order of the
bias, the slope of log |bias| on log e with its error, over the same steps, and the exact one for
small e.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pyro
import torch
from pyro.distributions import ImproperUniform, constraints
from torch import Tensor

from inference import MALA, ULA, InferenceWarning, fit

STEPS = (0.4, 0.8, 1.2)
SMALL = (0.1, 0.2)  # whose exact biases tell the order in the limit
GRID = np.linspace(-12, 14, 2601)
BURN_IN = 0.05  # of the draws

LogDensity = Callable[[Tensor], Tensor]


def normal(x: Tensor) -> Tensor:
    """Standard normal."""
    return -0.5 * x.square()


def skewed(x: Tensor) -> Tensor:
    """A normal of variance 2 that a logistic curve cuts off on the left: skewness 0.54."""
    return -0.25 * x.square() + torch.nn.functional.logsigmoid(3 * x)


DENSITIES: dict[str, LogDensity] = {"normal": normal, "skewed": skewed}


def program(log_density: LogDensity) -> Callable[[], None]:
    """The density as a Pyro program."""

    def model() -> None:
        x = pyro.sample("x", ImproperUniform(constraints.real, (), ()))
        pyro.factor("density", log_density(x))  # type: ignore[arg-type]

    return model


def averages(law: np.ndarray) -> np.ndarray:
    """E x and E x^2 of a law on the grid: (2,)."""
    return np.array([law @ GRID, law @ GRID**2]) / law.sum()


def truth(log_density: LogDensity) -> np.ndarray:
    """E x and E x^2 by the trapezoidal rule, exact to rounding: (2,)."""
    return averages(log_density(torch.as_tensor(GRID)).exp().numpy())


def stationary(log_density: LogDensity, step: float) -> np.ndarray:
    """E x and E x^2 of ULA: of the law that its kernel leaves as it is: (2,).

    From the law of the density the kernel is applied, and squared, until nothing changes.
    """
    x = torch.as_tensor(GRID).requires_grad_()
    (slope,) = torch.autograd.grad(log_density(x).sum(), x)
    mean = GRID + 0.5 * step**2 * slope.numpy()
    kernel = np.exp(-0.5 * ((GRID - mean[:, None]) / step) ** 2)
    kernel /= kernel.sum(1, keepdims=True)
    law = log_density(torch.as_tensor(GRID)).exp().numpy()
    before = averages(law)
    for _ in range(40):
        law = law @ kernel
        after = averages(law)
        if np.abs(after - before).max() < 1e-12:
            break
        before, kernel = after, kernel @ kernel
    return after


def sampled(
    log_density: LogDensity, engine: ULA | MALA, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """E x and E x^2 of a run, and their errors by the spread between chains: (2,) each."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InferenceWarning)
        found = fit(program(log_density), None, engine, seed=seed, progress=False)
    x = found.posterior.draws["x"].numpy()
    x = x[:, int(BURN_IN * x.shape[1]) :]
    means = np.stack([x.mean(1), (x**2).mean(1)])
    return means.mean(1), means.std(1, ddof=1) / math.sqrt(len(x))


def order(steps: Sequence[float], bias: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """The slope of log |bias| on log e, and its error, by weighted least squares."""
    x, y = np.log(steps), np.log(np.abs(bias))
    weight = (bias / error) ** 2
    centre = weight @ x / weight.sum()
    spread = weight @ (x - centre) ** 2
    return float(weight @ ((x - centre) * y) / spread), float(spread**-0.5)


def table(chains: int, draws: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Biases by density, step and moment; orders by density and moment."""
    rows, orders = [], []
    for name, log_density in DENSITIES.items():
        right = truth(log_density)
        exact = {e: stationary(log_density, e) - right for e in (*SMALL, *STEPS)}
        found = {}
        for e in STEPS:
            run = {"chains": chains, "draws": draws, "warmup": 0, "thin": 5, "tier": "traced"}
            for engine in (ULA(step_size=e, **run), MALA(step_size=e, **run)):
                mean, error = sampled(log_density, engine, seed)
                found[e, type(engine).__name__] = mean - right, error
        for i, moment in enumerate(("E x", "E x^2")):
            for e in STEPS:
                (ula, ula_error), (mala, mala_error) = found[e, "ULA"], found[e, "MALA"]
                row = [name, moment, e, exact[e][i], ula[i], ula_error[i], mala[i], mala_error[i]]
                rows.append(row)
            bias, error = (np.array([found[e, "ULA"][part][i] for e in STEPS]) for part in (0, 1))
            if abs(exact[STEPS[-1]][i]) < 1e-6:
                continue  # a mean that symmetry keeps right
            slope, spread = order(STEPS, bias, error)
            biases = np.array([exact[e][i] for e in STEPS])
            same, _ = order(STEPS, biases, error * biases / bias)
            small = math.log(exact[SMALL[1]][i] / exact[SMALL[0]][i]) / math.log(2)
            orders.append([name, moment, slope, spread, same, small])
    columns = ["density", "moment", "e", "exact", "ULA", "error", "MALA", "error of MALA"]
    of_orders = ["density", "moment", "order", "error", "exact", "exact, small e"]
    return pd.DataFrame(rows, columns=columns), pd.DataFrame(orders, columns=of_orders)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chains", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=2000, help="per chain, of five steps each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    biases, orders = table(options.chains, options.draws, options.seed)
    print(biases.round(5).to_string(index=False))
    print(orders.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
