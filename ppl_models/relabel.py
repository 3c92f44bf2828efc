"""Label switching: one labelling of the components for all draws of a mixture.

The components are matched to a pivot, the pivot is moved to the mean of the matched draws, and so
on until no label changes: the algorithm of Stephens (2000, "Dealing with label switching in mixture
models", J. R. Stat. Soc. B 62:795-809, section 4) for the squared distance between components'
parameters, each in units of its sd over all draws and components, as the loss; the matching is an
assignment problem. The result depends on the draws alone, not on the labels they came with.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppl_models.base import Params
from ppl_models.conjugate_normal import Structure

_ALL_PERMUTATIONS = 5  # up to so many components all orders are compared
_ROUNDS = 100


def relabelled(draws: Params, structure: Structure) -> Params:
    """``weights``, ``mean``, ``covariance`` and ``z`` with one labelling; others as they are.

    Draws have any leading dimensions. Components are numbered by the first coordinate of their
    means, on average over the draws.
    """
    weights, mean = draws["weights"], draws["mean"]
    lead, (k, dim) = mean.shape[:-2], mean.shape[-2:]
    tiny = torch.finfo(mean.dtype).tiny
    parts = [mean, weights.clamp(min=tiny).log()[..., None]]
    if not structure.tied:
        variances = structure.by_component(draws["covariance"], k, dim)
        variances = variances.diagonal(dim1=-2, dim2=-1) if structure.matrix else variances
        parts.append(variances.clamp(min=tiny).log())
    features = torch.cat(parts, -1).flatten(0, -3) if lead else torch.cat(parts, -1)[None]
    order = matched(features).reshape(*lead, k)
    if bool((order == torch.arange(k, device=order.device)).all()):
        return draws
    result = {**draws, "weights": weights.gather(-1, order), "mean": permuted(mean, order, 1)}
    if not structure.tied:
        events = 2 if structure.matrix else 0 if structure.shared else 1
        result["covariance"] = permuted(draws["covariance"], order, events)
    if "z" in draws:
        place = order.argsort(-1)
        z = draws["z"].long()
        result["z"] = place.gather(-1, z.reshape(*lead, -1)).reshape(z.shape).to(draws["z"].dtype)
    return result


def matched(features: Tensor) -> Tensor:
    """The order of the components of each draw, (S, K), from their parameters (S, K, P).

    Component ``order[s, k]`` of draw s takes the label k.
    """
    draws, k, _ = features.shape
    flat = features.flatten(0, 1)
    spread = flat.std(0, correction=0)
    varies = spread > 1e-12 * flat.abs().amax(0)
    scaled = torch.where(varies, (features - flat.mean(0)) / spread, 0.0)
    # of all starts by sorting along one parameter, the one that agrees best
    starts = features.argsort(1).unbind(-1)
    if draws == 1 or k == 1:
        return starts[0]
    order = min(starts, key=lambda o: _loss(scaled, o))
    for _ in range(_ROUNDS):
        pivot = permuted(scaled, order, 1).mean(0)
        new = assigned((scaled[:, None] - pivot[:, None]).square().sum(-1))
        if bool((new == order).all()):
            break
        order = new
    final = permuted(features[..., :1], order, 1).mean(0)[:, 0].argsort()
    return order[:, final]


def _loss(features: Tensor, order: Tensor) -> float:
    ordered = permuted(features, order, 1)
    return float((ordered - ordered.mean(0)).square().sum())


def assigned(cost: Tensor) -> Tensor:
    """The components that take labels 0..K-1 at the least cost: (S, label, component) -> (S, K)."""
    k = cost.shape[-1]
    if k <= _ALL_PERMUTATIONS:
        orders = torch.tensor(list(itertools.permutations(range(k))), device=cost.device)
        each = cost[:, torch.arange(k, device=cost.device), orders].sum(-1)  # (S, K!)
        return orders[each.argmin(-1)]
    rows = [linear_sum_assignment(matrix)[1] for matrix in cost.cpu().numpy()]
    return torch.as_tensor(np.stack(rows), device=cost.device)


def permuted(value: Tensor, order: Tensor, events: int) -> Tensor:
    """``value`` (..., K, *event) with its components in ``order`` (..., K)."""
    index = order.reshape(*order.shape, *[1] * events)
    return value.gather(order.dim() - 1, index.expand(*order.shape, *value.shape[order.dim() :]))


def invariants_of_mixture(draws: Params, structure: Structure) -> Params:
    """Weights in ascending order, mean and covariance of the mixture, and its mean log determinant.

    All are (chain, draw, ...): ``sorted_weights``, ``mixture_mean``, ``mixture_covariance``,
    ``log_determinant`` = sum_k weight_k log |covariance_k|.
    """
    weights, mean = draws["weights"], draws["mean"]
    k, dim = mean.shape[-2:]
    each = structure.by_component(draws["covariance"], k, dim)
    centre = (weights[..., None] * mean).sum(-2)
    away = mean - centre[..., None, :]
    between = (weights[..., None] * away).mT @ away
    if structure.matrix:
        within = (weights[..., None, None] * each).sum(-3)
        logs = torch.linalg.slogdet(each).logabsdet
    else:
        within = torch.diag_embed((weights[..., None] * each).sum(-2))
        logs = each.log().sum(-1)
    return {
        "sorted_weights": weights.sort(-1).values,
        "mixture_mean": centre,
        "mixture_covariance": within + between,
        "log_determinant": (weights * logs).sum(-1),
    }
