"""What a trained model with independent rows is worth on data: bounds in nats, units, clusters.

The importance-weighted bound with k draws, log (1/k) sum_k w_k (Burda, Grosse & Salakhutdinov
2016), is the usual estimate of log p(x) for k = 5,000. It is computed in parts, so that its memory
does not grow with rows or draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from inference import row_weights
from inference.program import isolated
from ppl_models.autoencoder import ACTIVE, Autoencoder
from ppl_models.base import Data, HasRows
from ppl_models.errors import DataError, EngineError

_NUMBERS = 2**24
"""Numbers that the observations of a part may hold, its draws counted."""

_MOST = 1_000  # draws of a row in a part
_TESTED = 1_024  # rows of a part of which one draw is made


@dataclass(frozen=True)
class Evaluation:
    """Bounds of each row, and how the latent units of an autoencoder are used.

    ``divergence`` and ``activity`` have a number for each unit: the mean divergence of its guide
    from its prior in nats, and the variance of its guide's mean over the rows.
    """

    elbo: Tensor  # (N,)
    bound: Tensor  # (N,)
    samples: int
    divergence: Tensor | None = None  # (latent,)
    activity: Tensor | None = None  # (latent,)

    @property
    def active(self) -> int | None:
        """How many units have an activity above 0.01."""
        return None if self.activity is None else int((self.activity > ACTIVE).sum())

    def table(self) -> pd.DataFrame:
        """Means over the rows, in nats, with their standard errors."""
        rows = {"ELBO": self.elbo, f"bound of {self.samples} draws": self.bound}
        found = {
            name: (float(value.mean()), float(value.std()) / math.sqrt(len(value)))
            for name, value in rows.items()
        }
        if self.divergence is not None:
            found["divergence of all units"] = (float(self.divergence.sum()), math.nan)
        if self.active is not None:
            found["active units"] = (self.active, math.nan)
        return pd.DataFrame.from_dict(found, orient="index", columns=["mean", "error"])


def evaluate(model: HasRows, data: Any, *, samples: int = 100, seed: int = 0) -> Evaluation:
    """Bounds on log p(x) of each row by draws of the model's guide, and the use of its units.

    Args:
        model: trained, such as ``fit.model``.
        data: whatever the model's ``prepare`` accepts, such as test data.
        samples: k, of the importance-weighted bound.
        seed: of the draws.

    Raises ``DataError`` for data that the model refuses, ``EngineError`` for a model without rows.
    """
    placed = _placed(model, data, samples)
    bound = _bound(model, placed, samples, seed)
    with isolated(_dtype(model), _device(model)), torch.no_grad():
        torch.manual_seed(seed)
        parts = [model.take(placed, rows) for rows in _rows(model, placed, _TESTED)]
        elbo = torch.cat(
            [row_weights.weigh(model, part, exact=True).log_weight[0] for part in parts]
        )
        if not isinstance(model, Autoencoder):
            return Evaluation(elbo, bound, samples)
        divergence = torch.cat([model.unit_divergences(part) for part in parts]).mean(0)
        means = torch.cat([model.encode(part["x"], part.get("y"))[0] for part in parts])
    return Evaluation(elbo, bound, samples, divergence, means.var(0))


def log_likelihood(model: HasRows, data: Any, *, samples: int = 5_000, seed: int = 0) -> Tensor:
    """The importance-weighted bound on log p(x) of each row: (N,).

    Its expectation rises to log p(x) as ``samples`` grow. Raises as ``evaluate`` does.
    """
    return _bound(model, _placed(model, data, samples), samples, seed)


def clustering(found: Any, truth: Any) -> dict[str, float]:
    """How well clusters agree with labels: ``accuracy``, ``nmi`` and ``ari``.

    The accuracy is the share of rows whose label is that of their cluster, under the one-to-one
    assignment of labels to clusters that makes it largest (Kuhn's Hungarian method).

    Raises ``DataError`` where they differ in length.
    """
    found, truth = (np.asarray(value).ravel() for value in (found, truth))
    if len(found) != len(truth) or not len(found):
        raise DataError(
            f"{len(found)} clusters and {len(truth)} labels; give one of each for every row"
        )
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    counts = contingency_matrix(truth, found)
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "accuracy": float(matched / len(truth)),
        "nmi": float(normalized_mutual_info_score(truth, found)),
        "ari": float(adjusted_rand_score(truth, found)),
    }


def _bound(model: HasRows, placed: Data, samples: int, seed: int) -> Tensor:
    rows = model.rows(placed)
    pixels = max(
        (v[:1].numel() for v in placed.values() if isinstance(v, Tensor) and len(v) == rows),
        default=1,
    )
    most = min(samples, _MOST, max(1, _NUMBERS // pixels))
    made = []
    with isolated(_dtype(model), _device(model)), torch.no_grad():
        torch.manual_seed(seed)
        for chosen in _rows(model, placed, max(1, _NUMBERS // (pixels * most))):
            part = model.take(placed, chosen)
            sums = []
            for begin in range(0, samples, most):
                draws = min(most, samples - begin)
                sums.append(row_weights.weigh(model, part, draws).log_weight.logsumexp(0))
            made.append(torch.stack(sums).logsumexp(0) - math.log(samples))
    return torch.cat(made)


def _placed(model: HasRows, data: Any, samples: int) -> Data:
    """The data as the model takes them, where its weights are."""
    if not isinstance(model, HasRows):
        raise EngineError(
            f"{type(model).__name__} has no independent rows with a guide (HasRows) to evaluate"
        )
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise EngineError(f"samples={samples!r}: give a positive whole number")
    device, dtype = _device(model), _dtype(model)

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return {name: placed(value) for name, value in model.prepare(data).items()}


def _dtype(model: HasRows) -> torch.dtype:
    return next(model.parameters()).dtype


def _device(model: HasRows) -> torch.device:
    return next(model.parameters()).device


def _rows(model: HasRows, data: Data, size: int) -> tuple[Tensor, ...]:
    return torch.arange(model.rows(data), device=_device(model)).split(size)
