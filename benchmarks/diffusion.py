"""Diffusion against closed forms, and the speed of its training.

    python -m benchmarks.diffusion [--gaussian] [--em] [--inpainting] [--speed]

All but the speed, unless some are named. ``--gaussian``: the bound of a diffusion with a linear
denoiser that ``fit`` has trained on normal data, its flow's likelihood, and the exact one; and its
terms against closed forms from the covariances of the chain. ``--em``: the bound that SVI and EM
reach from the same start. ``--inpainting``: mean and covariance of what is hidden of a row, by
HMC, NUTS and the conditional sampler. The toys' figures are those of the case study,
``python -m case_studies.diffusion_toys``.

``--speed [--repeats 9] [--steps 300]``: steps of training a perceptron of 128 units by minibatches
of 512, ours compiled and traced beside a plain PyTorch loop with the same network and loss, Adam as
it comes and fused. Contestants take turns on one thread; printed are medians of seconds of the
processor, which other work on the machine disturbs little, and of ratios within a round.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import steps as contestants
from inference import HMC, NUTS, SVI, InferenceWarning, TwistedSMC, fit, generation
from inference.denoising import Denoising
from ppl_models.denoisers import MLPDenoiser
from ppl_models.diffusion import Diffusion
from tests import gaussian_chain as exact
from tests.statistics import error

LAW = exact.correlated()


def gaussian(levels: int = 200, steps: int = 3000) -> None:
    """Bound, flow and exact likelihood; terms."""
    model = exact.trained(exact.rows(20_000, 1), levels, steps, 2000)
    moments = (LAW.mean, LAW.covariance_matrix)
    found, closed = (f(model, *moments) for f in (exact.averaged_terms, exact.expected_terms))
    entropy = float(LAW.entropy())
    held_out = exact.rows(4000, 2)
    off = generation.flow_log_density(model, held_out) - LAW.log_prob(held_out)
    print(f"normal data of two numbers, T = {levels}, {steps} steps of training; nats per row")
    print(f"  exact mean log p(x)           {-entropy:.5f}")
    print(f"  bound, in expectation         {-found.sum():.5f}  ({entropy - found.sum():+.5f})")
    flow, spread = float(off.mean()), float(off.std()) / math.sqrt(len(off))
    print(
        f"  flow, of {len(off)} fresh rows      {flow - entropy:.5f}  ({flow:+.5f} +- {spread:.5f})"
    )
    print(f"  L_T {found[-1]:.2g}, L_1 ... L_T-1 {found[1:-1].sum():.4f}, L_0 {found[0]:.4f}")
    print(f"  terms, largest difference from closed forms: {np.abs(found - closed).max():.1e}")


def em(levels: int = 10, rounds: int = 1000) -> None:
    """The bound by EM and by SVI, as many steps each."""
    rows = exact.rows(5000, 1)
    by_em, by_svi = exact.by_em(rows, levels, rounds), exact.trained(rows, levels, rounds, 200)
    moments = (LAW.mean, LAW.covariance_matrix)
    print(f"normal data, T = {levels}, {rounds} steps; the bound in expectation, nats per row")
    bounds = [-float(exact.averaged_terms(m, *moments).sum()) for m in (by_em, by_svi)]
    ratio = abs(bounds[0] / bounds[1] - 1)
    print(f"  EM {bounds[0]:.5f}, SVI {bounds[1]:.5f}: {ratio:.2%} apart")


def inpainting(levels: int = 10) -> None:
    """Moments of two hidden numbers given the third, in Monte Carlo errors."""
    model = exact.normal_model(levels)
    mean, covariance, _ = exact.conditional(model)
    data = {"x": [[exact.Y, math.nan, math.nan]], "seen": exact.SEEN}
    common: dict[str, Any] = {"chains": 24, "warmup": 300, "draws": 500, "tier": "traced"}
    engines = {
        "HMC": HMC(**common, steps=8),
        "NUTS": NUTS(**common),
        "TwistedSMC": TwistedSMC(runs=64, particles=1000),
    }
    names = ["mean 1", "mean 2", "var 1", "cov", "var 2"]
    m, c = mean[exact.HIDDEN], covariance[np.ix_(exact.HIDDEN, exact.HIDDEN)]
    true = [*m, c[0, 0], c[0, 1], c[1, 1]]
    gain = exact.COVARIANCE[exact.HIDDEN, 0] / exact.COVARIANCE[0, 0]
    of_data = exact.COVARIANCE[np.ix_(exact.HIDDEN, exact.HIDDEN)]
    of_data = of_data - np.outer(gain, exact.COVARIANCE[0, exact.HIDDEN])
    limit = [*(exact.MEAN[exact.HIDDEN] + gain * (exact.Y - exact.MEAN[0])), *of_data.ravel()]
    print(f"two hidden numbers given the third, T = {levels}: estimate, and its error in sds of it")
    print("  " + " " * 12 + "".join(f"{name:>16}" for name in names))
    print(f"  {'exact':12}" + "".join(f"{value:16.4f}" for value in true))
    print(f"  {'as T grows':12}" + "".join(f"{limit[i]:16.4f}" for i in (0, 1, 2, 3, 5)))
    for name, engine in engines.items():
        x = fit(model, data, engine, seed=3, progress=False).predict()["x"][:, :, 0].numpy()
        away = x[..., exact.HIDDEN] - m
        values = [
            x[..., 1],
            x[..., 2],
            away[..., 0] ** 2,
            away[..., 0] * away[..., 1],
            away[..., 1] ** 2,
        ]
        cells = [
            f"{value.mean():9.4f} ({(value.mean() - wanted) / error(value):+.1f})"
            for value, wanted in zip(values, true, strict=True)
        ]
        print(f"  {name:12}" + "".join(f"{cell:>16}" for cell in cells))


def speed(repeats: int, steps: int, batch: int = 512, levels: int = 1000) -> None:
    """Ours beside a plain loop: the simple loss of the noise, a linear schedule."""
    torch.set_num_threads(1)
    rows = torch.randn(50_000, 2)

    def model() -> Diffusion:
        torch.manual_seed(0)
        return Diffusion(MLPDenoiser(2), (2,), steps=levels, schedule="linear")

    def ours(tier: Any) -> float:
        engine = SVI(
            objective=Denoising("simple"),
            batch_size=batch,
            steps=steps,
            plateau=False,
            rows=1,
            draws=1,
            tier=tier,
        )
        return contestants.ours(model(), rows, engine, time.process_time)

    def plain(*, fused: bool) -> float:
        network = model().denoiser
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, fused=fused)
        kept = (1 - torch.linspace(1e-4, 0.02, levels)).cumprod(0)
        signal, noise = kept.sqrt(), (1 - kept).sqrt()

        def step(chosen: Tensor) -> float:
            x = rows[chosen]
            t, normal = torch.randint(0, levels, (batch,)), torch.randn_like(x)
            noisy = signal[t, None] * x + noise[t, None] * normal
            found = network(noisy, (t + 1) / levels)
            loss = (found - normal).square().sum(-1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            return loss.item()

        return contestants.looped(step, len(rows), batch, steps, time.process_time)

    runs: dict[str, Callable[[], float]] = {
        "plain": lambda: plain(fused=False),
        "fused": lambda: plain(fused=True),
        "traced": lambda: ours("traced"),
        "compiled": lambda: ours("compiled"),
    }
    title = f"2-128-128-128-128-2, batches of {batch}, T = {levels}"
    contestants.contest(title, runs, peers=("plain", "fused"), repeats=repeats, batch=batch)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    figures: dict[str, Callable[[], None]] = {
        "gaussian": gaussian,
        "em": em,
        "inpainting": inpainting,
    }
    for name in (*figures, "speed"):
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    warnings.simplefilter("ignore", InferenceWarning)
    wanted = [name for name in figures if getattr(given, name)]
    for name in wanted or ([] if given.speed else figures):
        figures[name]()
    if given.speed:
        speed(given.repeats, given.steps)


if __name__ == "__main__":
    main()
