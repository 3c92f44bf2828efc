"""What a diffusion asks of its data, its denoiser and its checkpoints, told before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ppl_models.base import Data
from ppl_models.data import as_fields, finite
from ppl_models.errors import DataError, ModelError


def rows(data: Any, shape: tuple[int, ...], levels: int | None) -> Data:
    """``x`` (N, *shape) from an array or a mapping with x, and the mask ``seen`` if it has one.

    Raises ``DataError`` for another shape, values that are missing or infinite, and with levels for
    values that are not among them, each where it is seen.
    """
    fields = as_fields(data if isinstance(data, Mapping) else {"x": data})
    x, seen = fields.get("x"), fields.get("seen")
    if not isinstance(x, Tensor) or not fields.keys() <= {"x", "seen"}:
        raise DataError("give an array of rows, or a mapping with x, and seen if parts are hidden")
    if x.shape[1:] != shape or not len(x):
        raise DataError(
            f"x: has shape {tuple(x.shape)}; give at least one row of {shape}: "
            f"(N, {', '.join(map(str, shape))})"
        )
    x = x if x.is_floating_point() else x.double()
    if seen is not None:
        seen = _mask(seen, x)
        x = torch.where(seen, x, -1.0)
    x = finite("x", x)
    if levels is not None:
        half = (levels - 1) / 2
        level = (x + 1) * half
        if bool((level - level.round()).abs().max() > 1e-2) or bool(x.abs().max() > 1 + 1e-6):
            raise DataError(
                f"x: with {levels} levels it needs numbers -1, -1 + 2/{levels - 1}, ..., 1; give "
                f"pixels / {half:g} - 1"
            )
    return {"x": x} if seen is None else {"x": x, "seen": seen}


def _mask(seen: Any, x: Tensor) -> Tensor:
    if isinstance(seen, Tensor) and seen.dtype == torch.bool:
        try:
            return seen.to(x.device).broadcast_to(x.shape).clone()
        except RuntimeError:
            pass
    raise DataError(
        f"seen: give a mask of True and False of the shape of x, {tuple(x.shape)}, or of one that "
        "broadcasts to it"
    )


@torch.no_grad()
def fits(denoiser: nn.Module, shape: tuple[int, ...], *, learned: bool) -> None:
    """Let two rows pass. Raises ``ModelError`` where they cannot, or have another shape behind."""
    like = next(denoiser.parameters(), torch.zeros(()))
    x, time = like.new_zeros(2, *shape), like.new_full((2,), 0.5)
    wanted = (2, shape[0] * (2 if learned else 1), *shape[1:])
    try:
        found = tuple(denoiser(x, time).shape)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ModelError(
            f"the denoiser fails on rows of {shape}: {str(error).splitlines()[0]}; make it for "
            "their channels and size"
        ) from error
    if found != wanted:
        what = "a learned variance" if learned else "a fixed variance"
        raise ModelError(
            f"the denoiser gives {found} for two rows of {shape}, and {what} needs {wanted}; "
            "change its channels or outputs"
        )


def same_settings(kept: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raises ``ModelError`` where weights come from a diffusion with other settings."""
    for name, value in own.items():
        if kept[name] != value:
            raise ModelError(
                f"these weights are of a diffusion with {name}={kept[name]}, and this one has "
                f"{name}={value}; make it with the settings of the checkpoint"
            )
