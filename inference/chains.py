"""What kernels of Markov chains, all chains in one batch, and the loop that runs them hand over."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from inference.recording import Columns
from inference.warmup import Averaging


class Tuning(NamedTuple):
    """What warm-up learns: S S^T approximates the posterior covariance."""

    step_size: Tensor  # (C,)
    scale: Tensor  # (D,) or (D, D): S
    path: Any = None  # what else the kernel learns, such as the length of its trajectories

    def stepping(self, size: Tensor) -> Tuning:
        """With other step sizes (C,), in the precision of these."""
        return self._replace(step_size=size.to(self.step_size).contiguous())


class Randomness(NamedTuple):
    """The random numbers of one step."""

    normal: Tensor  # (C, D)
    uniform: Tensor  # (C, U)


class State(Protocol):
    """Any NamedTuple whose ``x`` and ``log_density`` are those of the last finished transition."""

    @property
    def x(self) -> Tensor: ...  # (C, D)

    @property
    def log_density(self) -> Tensor: ...  # (C,)


class Info(NamedTuple):
    """What a step reports; the statistics mean something where ``done``."""

    done: Tensor  # (C,) bool: which chains finished a transition
    acceptance_rate: Tensor  # (C,)
    statistics: dict[str, Tensor]  # {name: (C,)}


class History(NamedTuple):
    """A block of K steps, or of K transitions, which some chains lack; see ``done``."""

    x: Tensor  # (K, C, D)
    log_density: Tensor  # (K, C)
    done: Tensor  # (K, C)
    acceptance_rate: Tensor  # (K, C)
    statistics: dict[str, Tensor]  # {name: (K, C)}

    @classmethod
    def joined(cls, blocks: list[History]) -> History:
        """Blocks that follow one another, as one."""
        return cls(
            torch.cat([block.x for block in blocks]),
            torch.cat([block.log_density for block in blocks]),
            torch.cat([block.done for block in blocks]),
            torch.cat([block.acceptance_rate for block in blocks]),
            {k: torch.cat([block.statistics[k] for block in blocks]) for k in blocks[0].statistics},
        )

    def columns(self) -> Columns:
        """What is recorded of the steps."""
        named = {"x": self.x, "lp": self.log_density, "acceptance_rate": self.acceptance_rate}
        return named | self.statistics


class Block(NamedTuple):
    """What a block of steps did."""

    state: Any
    averaging: Averaging | None
    history: History
    steps: int
