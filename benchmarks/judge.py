"""What draws are worth: the same figures, by the same code, for every contender."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import arviz as az
import numpy as np

from inference import mixing


def reliability(draws: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Least bulk effective sample size and largest R-hat of all scalars; (chain, draw, *event)."""
    data = az.convert_to_dataset(dict(draws))
    ess = min(float(v.min()) for v in az.ess(data, method="bulk").data_vars.values())
    r_hat = np.nan
    if len(next(iter(draws.values()))) > 1:
        r_hat = max(float(v.max()) for v in az.rhat(data).data_vars.values())
    return {"min_ess": ess, "max_rhat": r_hat}


def errors(draws: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Monte-Carlo standard errors of each site's mean and standard deviation."""
    return {name: (mixing.mcse_mean(x), mixing.mcse_sd(x)) for name, x in draws.items()}


def agreement(draws: Mapping[str, np.ndarray], reference: Mapping[str, Any]) -> dict[str, float]:
    """Largest distance of means and of sds from a reference, in standard errors of both."""
    off_mean, off_sd = 0.0, 0.0
    known = errors(draws)
    for name, moments in reference.items():
        value = draws[name]
        mean = value.mean((0, 1)) - moments.mean
        sd = value.reshape(-1, *value.shape[2:]).std(0, ddof=1) - moments.sd
        error_mean = np.hypot(known[name][0], moments.mean_error)
        error_sd = np.hypot(known[name][1], moments.sd_error)
        off_mean = max(off_mean, float(np.max(abs(mean) / error_mean)))
        off_sd = max(off_sd, float(np.max(abs(sd) / error_sd)))
    return {"mean_mcse": off_mean, "sd_mcse": off_sd}
