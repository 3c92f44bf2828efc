"""The posteriors of ``benchmarks.posteriors`` once more, as PyMC models with the same sites."""

from __future__ import annotations

from typing import Any

import numpy as np
import pymc as pm


def oring(x: np.ndarray, y: np.ndarray) -> pm.Model:
    with pm.Model() as model:
        alpha = pm.Normal("alpha", 0.0, 10.0)
        beta = pm.Normal("beta", 0.0, 10.0)
        pm.Bernoulli("y", logit_p=alpha + beta * x, observed=y)
    return model


def mixture(x: np.ndarray, centres: np.ndarray, ones: np.ndarray) -> pm.Model:
    with pm.Model() as model:
        weights = pm.Dirichlet("weights", ones)
        shift = pm.Normal("shift", 0.0, 4.0, shape=(3, 2))
        sd = pm.LogNormal("sd", 0.0, 0.5, shape=(3, 2))
        z = (x[:, None, :] - centres - shift / 4) / sd  # (N, 3, 2)
        parts = (-0.5 * z**2 - pm.math.log(sd) - 0.5 * np.log(2 * np.pi)).sum(-1)
        pm.Potential("x", pm.math.logsumexp(pm.math.log(weights) + parts, axis=1).sum())
    return model


def eight_schools(y: np.ndarray, error: np.ndarray) -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfCauchy("tau", 5.0)
        theta = pm.Normal("theta", 0.0, 1.0, shape=8)
        pm.Normal("y", mu + tau * theta, error, observed=y)
    return model


def hierarchical(x: np.ndarray, group: np.ndarray, y: np.ndarray) -> pm.Model:
    with pm.Model() as model:
        mu = pm.Normal("mu", 0.0, 5.0)
        tau = pm.HalfNormal("tau", 1.0)
        beta = pm.Normal("beta", 0.0, 1.0, shape=10)
        effect = pm.Normal("effect", 0.0, 1.0, shape=20)
        logits = (mu + tau * effect)[group] + pm.math.dot(x, beta)
        pm.Bernoulli("y", logit_p=logits, observed=y)
    return model


def logistic(x: np.ndarray, y: np.ndarray) -> pm.Model:
    with pm.Model() as model:
        alpha = pm.Normal("alpha", 0.0, 5.0)
        beta = pm.Normal("beta", 0.0, 1.0, shape=50)
        pm.Bernoulli("y", logit_p=alpha + pm.math.dot(x, beta), observed=y)
    return model


MODELS: dict[str, Any] = {
    "oring": oring,
    "mixture": mixture,
    "eight_schools": eight_schools,
    "hierarchical": hierarchical,
    "logistic": logistic,
}
