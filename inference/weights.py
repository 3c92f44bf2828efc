"""Weights on their way: the optimiser that moves them, its learning rate, and their average.

Averaged weights are those of Polyak & Juditsky (1992), exponentially (as in Ho, Jain & Abbeel
2020): a <- d a + (1 - d) w, with d = min(decay, (1 + t) / (10 + t)) at step t.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_models.base import Params
from ppl_models.errors import EngineError

Optimiser = Callable[..., torch.optim.Optimizer]
Schedule = Callable[[torch.optim.Optimizer], LRScheduler]

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_FOLLOWED = ("betas", "momentum")  # what schedules move beside the rate


class Moved(NamedTuple):
    """Weights after some steps, and what the next step depends on: plain tensors."""

    weights: Params
    average: Params  # empty without averaging
    moments: dict[str, Any]  # the optimiser's, by number of the weight


class Weights:
    """Weights that are moved in place.

    Args:
        start: their values, which stay as they are.
        optimiser: called as ``optimiser(leaves, lr=rate)``.
        rate: the learning rate.
        schedule: makes a ``torch.optim.lr_scheduler`` of an optimiser; a function of the step.
        clip: the largest norm of the gradient.
        average: the decay of the exponential average, 0 for none.

    Raises ``EngineError`` for a schedule that is none.
    """

    def __init__(
        self,
        start: Params,
        *,
        optimiser: Optimiser,
        rate: float,
        schedule: Schedule | None = None,
        clip: float | None = None,
        average: float = 0.0,
    ) -> None:
        self.values = {k: v.detach().clone().requires_grad_() for k, v in start.items()}
        self._leaves = list(self.values.values())
        self.average = {k: v.detach().clone() for k, v in start.items()} if average else {}
        self._decay, self._clip, self._rate = average, clip, rate
        self._make = optimiser
        self._optimiser = self._made(self._leaves)
        self._schedule, self._shadow = None, self._made([torch.zeros(1, requires_grad=True)])
        if schedule is not None:
            self._schedule = self._checked(schedule)
        self._steps = 0

    @property
    def final(self) -> Params:
        """The averaged weights, or the last ones where there is no average."""
        return self.average or {name: value.detach() for name, value in self.values.items()}

    @property
    def finite(self) -> bool:
        """Whether every weight is."""
        return all(bool(torch.isfinite(value).all()) for value in self._leaves)

    @property
    def rate(self) -> float:
        """The learning rate that the schedule gives."""
        return float(self._shadow.param_groups[0]["lr"])

    def move(self, gradients: list[Tensor], factor: float = 1.0) -> None:
        """One step along the gradients, at so many times the scheduled rate."""
        for leaf, gradient in zip(self._leaves, gradients, strict=True):
            leaf.grad = gradient
        if self._clip is not None:
            torch.nn.utils.clip_grad_norm_(self._leaves, self._clip)
        ours, theirs = self._optimiser.param_groups[0], self._shadow.param_groups[0]
        ours["lr"] = theirs["lr"] * factor
        ours.update({name: theirs[name] for name in _FOLLOWED if name in theirs})
        self._optimiser.step()
        self._steps += 1
        if self._schedule is not None:
            self._schedule.step()
        if self.average:
            share = 1 - min(self._decay, (1 + self._steps) / (10 + self._steps))
            with torch.no_grad():
                lerp: Any = torch._foreach_lerp_  # type: ignore[attr-defined]
                lerp(list(self.average.values()), self._leaves, share)

    def saved(self) -> Moved:
        """A copy of all that the next step depends on."""
        moments = self._optimiser.state_dict()["state"]
        named = {str(number): _copied(values) for number, values in moments.items()}
        return Moved(_copied(self.values), _copied(self.average), named)

    @torch.no_grad()
    def restore(self, saved: Moved, steps: int) -> None:
        """Go on from saved weights; the schedule is where it is after so many steps."""
        for values, old in ((self.values, saved.weights), (self.average, saved.average)):
            for name, value in values.items():
                value.copy_(old[name])
        whole = self._optimiser.state_dict()
        whole["state"] = {int(number): _copied(kept) for number, kept in saved.moments.items()}
        self._optimiser.load_state_dict(whole)
        if self._schedule is not None:
            for _ in range(steps - self._steps):
                self._schedule.step()
        self._steps = steps

    def _made(self, leaves: list[Tensor]) -> torch.optim.Optimizer:
        return self._make(
            leaves, lr=self._rate, **({"fused": True} if self._make in _FUSED else {})
        )

    def _checked(self, schedule: Schedule) -> LRScheduler:
        """The schedule of the shadow, an optimiser whose settings ours follows."""
        made = schedule(self._shadow)
        if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
            raise EngineError(
                f"schedule=: it made a {type(made).__name__}; give a function from an optimiser to "
                "a torch.optim.lr_scheduler that depends on the step alone (without a schedule "
                "the rate is lowered on a plateau)"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no gradient, no step
            self._shadow.step()  # torch asks for one before the schedule's first
        return made


@torch.no_grad()
def put(model: nn.Module, weights: Params) -> None:
    """Give a model these weights."""
    for name, weight in model.named_parameters():
        if name in weights:
            weight.copy_(weights[name])


def _copied(values: Any) -> Any:
    return {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in values.items()}
