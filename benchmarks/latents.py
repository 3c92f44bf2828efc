"""Latents of trained models: likelihoods, posteriors and gaps against closed forms.

    python -m benchmarks.latents [--rows 200] [--digits]

A variational autoencoder with linear networks is probabilistic PCA, whose likelihood and posterior
are known. Printed are the exact log p(x) at the weights that SVI found beside SVI's ELBO, annealed
importance sampling and its bounds from both sides on simulated rows; z scores of the first and
second moments of z by HMC and NUTS; and the exact log p(x) that SVI and Monte Carlo EM (without an
encoder) reach from the same start. ``--digits`` adds a small Bernoulli autoencoder of
scikit-learn's digits: annealing beside 5,000 importance samples, and the gaps of its encoder.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from inference import (
    AIS,
    HMC,
    MCEM,
    NUTS,
    SVI,
    InferenceWarning,
    RowWise,
    bidirectional,
    fit,
    inference_gaps,
    mixing,
)
from inference.row_evaluation import evaluate, log_likelihood
from ppl_models import VAE

PIXELS, LATENT = 8, 2
ANNEALING = AIS(chains=16, temperatures=500, kernel=HMC(steps=3))


def linear() -> VAE:
    """Probabilistic PCA as a variational autoencoder."""
    torch.manual_seed(0)
    networks: dict[str, Any] = {
        "encoder": nn.Linear(PIXELS, 2 * LATENT),
        "decoder": nn.Linear(LATENT, PIXELS),
    }
    return VAE(LATENT, likelihood="gaussian", shape=PIXELS, **networks).double()


def simulated(rows: int) -> Tensor:
    """Rows of another model of that kind."""
    generator = torch.Generator().manual_seed(1)
    z, noise, weight = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((rows, LATENT), (rows, PIXELS), (LATENT, PIXELS))
    )
    return z @ weight + 0.5 * noise + 1.0


@torch.no_grad()
def exact(model: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log p(x) (rows,), means (rows, latent) of p(z | x), and their covariance."""
    weight, bias = model.decoder.weight, model.decoder.bias
    variance = (2 * model.likelihood.log_sd).exp()
    covariance = weight @ weight.T + variance * torch.eye(PIXELS).to(weight)
    log_p = MultivariateNormal(bias, covariance).log_prob(x)
    spread = (torch.eye(LATENT).to(weight) + weight.T @ weight / variance).inverse()
    return log_p, (x - bias) @ weight / variance @ spread, spread


def highest(x: Tensor) -> float:
    """The mean log likelihood at the maximum (Tipping & Bishop 1999)."""
    values, vectors = torch.linalg.eigh(torch.cov(x.T, correction=0))
    variance = values[:-LATENT].mean()
    loadings = vectors[:, -LATENT:] * (values[-LATENT:] - variance).sqrt()
    covariance = loadings @ loadings.T + variance * torch.eye(PIXELS).to(x)
    return float(MultivariateNormal(x.mean(0), covariance).log_prob(x).mean())


def likelihoods(rows: int) -> Any:
    """SVI, annealing and the exact figure; the trained fit."""
    x = simulated(rows)
    trained = fit(linear(), x, SVI(steps=6000, learning_rate=0.01, average=0.999, draws=10))
    model = trained.model
    log_p = exact(model, x)[0]
    begin = time.perf_counter()
    attributes = fit(model, x, ANNEALING).posterior.attributes
    annealed = np.array(attributes["log_likelihood"])
    seconds = time.perf_counter() - begin
    elbo = float(evaluate(model, x).elbo.mean())
    print(f"mean log p(x) of {rows} rows, in nats")
    print(f"  maximum of the likelihood         {highest(x):10.4f}")
    print(f"  exact, at the weights of SVI      {float(log_p.mean()):10.4f}")
    print(f"  ELBO of SVI                       {elbo:10.4f}")
    print(
        f"  annealed importance sampling      {annealed.mean():10.4f}   "
        f"(largest error of a row {np.abs(annealed - log_p.numpy()).max():.3f}, "
        f"effective chains {np.mean(attributes['weight_ess']):.1f} of {ANNEALING.chains}, "
        f"{seconds:.1f} s)"
    )
    bounds = bidirectional(model, x, ANNEALING, seed=1)
    error = bounds.lower - exact(model, bounds.data["x"])[0]
    print(f"  {bounds}; lower - exact {float(error.mean()):.4f}")
    return trained


def posteriors(model: Any, x: Tensor) -> None:
    """Moments of z by Markov chains, in Monte Carlo standard errors by effective sample size."""
    _, mean, covariance = exact(model, x)
    sd = covariance.diagonal().sqrt()
    print(f"z scores of {2 * mean.numel()} moments of z, and of {len(x)} covariances")
    engines = {
        "HMC": HMC(chains=4, steps=2, warmup=500, draws=1000),
        "NUTS": NUTS(chains=4, warmup=500, draws=1000),
    }
    for name, sampler in engines.items():
        begin = time.perf_counter()
        found = fit(model, x, RowWise(sampler)).posterior
        seconds = time.perf_counter() - begin
        away = ((found.draws["z"] - mean) / sd).numpy()  # (chain, draw, row, latent)
        crossed = away[..., :1] * away[..., 1:] - float(covariance[0, 1] / sd.prod())
        scores = []
        for quantity in (away, away**2 - 1, crossed):
            size = mixing.ess_mean(quantity)
            scores.append(quantity.mean((0, 1)) / (quantity.std((0, 1)) / np.sqrt(size)))
        flat = np.concatenate([score.ravel() for score in scores])
        print(
            f"  {name:4} sd {flat.std():.3f} (1 if exact), largest {np.abs(flat).max():.2f}, "
            f"R-hat at most {mixing.r_hat(away).max():.4f}, {seconds:.1f} s"
        )


def expectation_maximisation(svi: Any, x: Tensor) -> None:
    """The exact likelihood that is reached from the same start."""
    begin = time.perf_counter()
    engine = MCEM(
        HMC(chains=4, steps=2, warmup=100, draws=100),
        rounds=600,
        learning_rate=0.02,
        average=0.99,
        rows=20,
    )
    model = fit(linear(), x, engine).model
    seconds = time.perf_counter() - begin
    reached, other = (float(exact(m, x)[0].mean()) for m in (model, svi.model))
    print("mean exact log p(x) reached from the same start")
    print(f"  SVI                {other:10.4f}   {svi.seconds['total']:.1f} s")
    print(f"  Monte Carlo EM     {reached:10.4f}   {seconds:.1f} s")
    print(f"  difference         {abs(reached / other - 1):.3%}")


def digits() -> None:
    """Annealing beside importance sampling, and gaps, on images."""
    data: Any = load_digits()
    images = torch.as_tensor(data.images / 16.0, dtype=torch.float64)
    model = VAE(8, 64, shape=(8, 8), binarise="fixed").double()
    trained = fit(model, images[:1500], SVI(steps=5000, batch_size=128, draws=10))
    some = images[1500:1600]
    sampled = log_likelihood(trained.model, some, samples=5000)
    print(f"digits, 100 test images: 5,000 importance samples {float(sampled.mean()):.3f} nats")
    print(inference_gaps(trained.model, some, AIS(chains=16, temperatures=1000)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--digits", action="store_true")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore", InferenceWarning)
    svi = likelihoods(chosen.rows)
    x = simulated(chosen.rows)
    posteriors(svi.model, x[:50])
    expectation_maximisation(svi, x)
    if chosen.digits:
        digits()


if __name__ == "__main__":
    main()
