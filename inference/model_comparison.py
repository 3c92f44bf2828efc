"""Models side by side by their leave-one-out predictive densities.

Vehtari, Gelman & Gabry (2017), Stat. Comput. 27:1413-1432; for what the standard error of a
difference is worth, Sivula, Magnusson, Matamoros & Vehtari (2025), Bayesian Analysis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from inference.compare_cells import Cell
from inference.criticism import Loo, loo
from inference.fit import Fit
from ppl_models.errors import EngineError

LOO_COLUMNS = {
    "fit": "name of the fit that stands for the model",
    "elpd": "expected log predictive density of new data (nats): the more the better",
    "se": "its standard error",
    "elpd_diff": "elpd of the best model less this one's",
    "diff_se": "standard error of the difference, from observation to observation",
    "p_loo": "effective number of parameters",
    "unreliable": "observations whose Pareto k-hat is above its limit",
    "k_hat": "largest Pareto k-hat of an observation",
}
"""The columns of ``Comparison.loo()`` and what they mean."""


def standing(
    cells: Sequence[Cell], fits: Mapping[str, Fit], engine: str | None, seed: int | None
) -> dict[str, str]:
    """For each model the name of the fit that stands for it.

    Of the fits by the engine and seed, if these are given: the Markov chains whose smallest bulk
    effective sample size is largest, else the approximation with the smallest Pareto k-hat.

    Raises:
        EngineError: a model has no fit with draws.
    """
    chosen = {}
    for model in dict.fromkeys(cell.model for cell in cells):
        named = [
            cell.name
            for cell in cells
            if cell.model == model
            and cell.name in fits
            and engine in (None, cell.engine)
            and seed in (None, cell.seed)
        ]
        drawn = [name for name in named if fits[name].posterior.kind != "point"]
        if not drawn:
            what = "no fit" if not named else "only a point, without draws,"
            by = "" if engine is None else f" by '{engine}'"
            by += "" if seed is None else f" with seed {seed}"
            raise EngineError(
                f"there is {what}{by} of model '{model}'; leaving data out needs an engine with "
                "draws, such as NUTS"
            )
        chosen[model] = max(drawn, key=lambda name: _merit(fits[name]))
    return chosen


def loo_table(fits: Mapping[str, Fit], site: str | None = None) -> tuple[pd.DataFrame, list[str]]:
    """Leave-one-out of each fit, the best first, and what must be known of them, in words.

    The difference of two models is the sum over observations of d_i = elpd_1i - elpd_2i; its
    standard error is sqrt(N var d). It is too small where N is below 100, where a model is
    misspecified, or where models predict nearly alike (|elpd_diff| below 4).

    Args:
        fits: by model, with draws of the same data.
        site: the observed site, where a program has several.

    Raises:
        EngineError: the observations of two models differ, in number or in values.
    """
    scores = {model: loo(result, site) for model, result in fits.items()}
    _same_data(fits, scores)
    order = sorted(scores, key=lambda model: -scores[model].elpd)
    best = scores[order[0]]
    rows, told = {}, []
    for model in order:
        score = scores[model]
        gap = best.elpd_i - score.elpd_i
        rows[model] = {
            "elpd": score.elpd,
            "se": score.se,
            "elpd_diff": float(gap.sum()),
            "diff_se": float(np.sqrt(len(gap)) * gap.std()),
            "p_loo": score.p_loo,
            "unreliable": len(score.unreliable),
            "k_hat": float(score.k_hat.max()),
        }
        if len(score.unreliable):
            told.append(
                f"{model}: the Pareto k-hat of {len(score.unreliable)} of {len(score.elpd_i)} "
                f"observations is above {score.limit:.2f}, so that its elpd cannot be trusted; fit "
                "again without them, or make the model less sensitive to them"
            )
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("model"), told


def _merit(result: Fit) -> tuple[int, float]:
    if result.posterior.kind == "samples":
        return 1, float(np.nan_to_num(result.summary()["ess_bulk"].to_numpy(float).min()))
    return 0, -float(result.posterior.attributes.get("pareto_k", np.inf))


def _same_data(fits: Mapping[str, Fit], scores: Mapping[str, Loo]) -> None:
    first = next(iter(fits))
    expected = _observed(fits[first], scores[first])
    for model, score in scores.items():
        if len(score.elpd_i) != len(scores[first].elpd_i):
            raise EngineError(
                f"'{first}' has {len(scores[first].elpd_i)} observations and '{model}' "
                f"{len(score.elpd_i)}: predictive densities can only be compared on the same data, "
                "observation by observation"
            )
        observed = _observed(fits[model], score)
        if observed.shape != expected.shape or not np.array_equal(observed, expected):
            raise EngineError(
                f"'{first}' and '{model}' observe other values: predictive densities can only be "
                "compared on the same data, in the same units and order"
            )


def _observed(result: Fit, score: Loo) -> np.ndarray:
    return result.program.observations[score.site].detach().cpu().double().numpy().ravel()
