"""Images for models of them: checked, and made binary."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_models.data import as_tensor, finite, same_length
from ppl_models.errors import DataError
from ppl_models.likelihoods import Likelihood

_SEED = 0  # of a fixed binarisation


def images(
    name: str, value: Any, shape: Sequence[int], like: Tensor, likelihood: Likelihood
) -> Tensor:
    """Images (N, *shape) with the dtype of ``like``; rows are flattened, or given their shape.

    Raises ``DataError`` for another size, an empty field, and values that are missing, infinite or
    outside the likelihood's support.
    """
    x = as_tensor(name, value)
    if not isinstance(x, Tensor):
        raise DataError(f"{name}: is a {type(value).__name__}; give an array of images")
    flat = (math.prod(shape),)
    if x.dim() > 1 and flat in (x.shape[1:], tuple(shape)) and x[:1].numel() == flat[0]:
        x = x.reshape(len(x), *shape)
    if x.dim() == 0 or x.shape[1:] != tuple(shape):
        raise DataError(
            f"{name}: has shape {tuple(x.shape)}, and the model takes images of {tuple(shape)}; "
            f"give (N, {', '.join(map(str, shape))}), or a model with another shape="
        )
    if not len(x):
        raise DataError(f"{name}: is empty; give at least one image")
    x = finite(name, x).to(like.dtype)
    outside = ~likelihood.within(x)
    if bool(outside.any()):
        place = outside.flatten(1).nonzero()[0].tolist()
        worst = float(x.flatten(1)[place[0], place[1]])
        raise DataError(
            f"{name}: row {place[0]} has a pixel of {worst:g}; a {type(likelihood).__name__} takes "
            f"{likelihood.support}"
        )
    return x


def binarised(grey: Tensor) -> Tensor:
    """Zeros and ones drawn with probabilities ``grey``, always the same ones."""
    drawn = torch.bernoulli(grey.cpu(), generator=torch.Generator().manual_seed(_SEED))
    return drawn.to(grey)


def labels(name: str, value: Any, classes: int, x: Tensor, *, every: bool) -> Tensor:
    """Labels 0, ..., classes - 1 of the rows of x, (N,) int64.

    Args:
        name: of the field.
        value: as given; None where it is missing.
        classes: how many.
        x: the rows.
        every: refuse data in which a class has no row.

    Raises ``DataError`` naming the cause.
    """
    if value is None:
        raise DataError(f"{name}: is missing; give the label of each image, in a mapping of x, y")
    y = as_tensor(name, value)
    if not isinstance(y, Tensor) or y.dim() != 1:
        raise DataError(f"{name}: give one label for each image, 0, ..., {classes - 1}")
    same_length(x=x, **{name: y})
    wrong = ~((finite(name, y) == y.round()) & (y >= 0) & (y < classes))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"{name}: row {row} is {float(y[row]):g}; labels are 0, ..., {classes - 1} with "
            f"classes={classes}"
        )
    y = y.long()
    empty = (y.bincount(minlength=classes) == 0).nonzero().ravel().tolist()
    if every and empty:
        raise DataError(
            f"{name}: no image has the label {', '.join(map(str, empty))}; what the networks make "
            "of it would not be trained: give some, or number the labels anew with fewer classes"
        )
    return y
