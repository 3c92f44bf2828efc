"""pomegranate's side of ``benchmarks.em``, for an interpreter of its own: one line of JSON out."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import torch
from pomegranate.distributions import Normal
from pomegranate.gmm import GeneralMixtureModel


def timed(x: torch.Tensor, k: int, steps: int, restarts: int) -> float:
    """Seconds of fits from random rows as means, run in turn: it has no restarts of its own."""
    begin = time.perf_counter()
    for seed in range(restarts):
        random = np.random.default_rng(seed)
        covariance = torch.cov(x.T)
        parts = [
            Normal(means=x[i], covs=covariance.clone(), covariance_type="full")
            for i in random.choice(len(x), k, replace=False)
        ]
        GeneralMixtureModel(parts, max_iter=steps, tol=-np.inf).fit(x)
    return time.perf_counter() - begin


if __name__ == "__main__":
    path, precision, k, few, many, restarts, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    # its masks have torch's own default, which must be that of the data
    torch.set_default_dtype(getattr(torch, precision))
    x = torch.as_tensor(np.load(path)).to(getattr(torch, precision))
    short = timed(x, int(k), int(few), int(restarts))
    long = timed(x, int(k), int(many), int(restarts))
    print(json.dumps((long - short) / (int(many) - int(few))))
