"""Annealed Langevin dynamics: draws by a learned score, from large noise to small.

With s(x, d) the gradient of the log density of data with noise of sd d added, every draw makes some
steps of the unadjusted Langevin algorithm at each level d of a ladder, begun where the level before
left it,

    x' = x + (l d)^2 / 2 s(x, d) + l d n,   n ~ N(0, I).

At large d modes run into one another and draws find their shares of them; small d bring the details
(Song & Ermon 2019, "Generative modeling by estimating gradients of the data distribution"). A score
has no density, so that no step can be corrected or weighted; of a program, whose density is known,
``SMC(kernel=MALA())`` and ``AIS`` anneal with weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.progress import bar
from ppl_models.errors import EngineError
from ppl_models.noise import Noise

Score = Callable[[Tensor, float], Tensor]
"""The gradient of the log density of data with noise of that sd added: (B, D) -> (B, D)."""


@torch.no_grad()
def annealed_draws(
    score: Score,
    start: Tensor,
    sds: Sequence[float],
    *,
    steps: int = 100,
    length: float = 0.4,
    denoise: bool = True,
    seed: int = 0,
    progress: bool | None = None,
) -> Tensor:
    """Draws by a learned score: (N, D).

    Args:
        score: s(x, d), such as ``ScoreModel.score``, or ``generation.score_of(diffusion)``.
        start: where the draws begin, (N, D): normal with the first sd, or anything as wide.
        sds: d, decreasing; the first as large as distances in the data, the last as small as
            details.
        steps: Langevin steps per level.
        length: l; the variance at a level is up to 1 / (1 - l^2 / 4) too large. Draws forget where
            they began on a scale of w in about (w / (l d))^2 steps.
        denoise: whether to end with x + d^2 s(x, d), the mean of the data given x at the last
            level, which takes that level's noise away.
        seed: of the random numbers.
        progress: whether to show a bar; by default on a terminal.

    Raises:
        EngineError: the sds do not decrease, a setting is out of range, or the score is not finite.

    Example:
        >>> import torch
        >>> from inference import annealed_draws
        >>> def score(x, sd):  # of data N(0, 4)
        ...     return -x / (4 + sd**2)
        >>> x = annealed_draws(score, 10 * torch.randn(2000, 1), [10.0, 3.0, 1.0, 0.3])
        >>> 1.7 < float(x.std()) < 2.3
        True
    """
    ladder = [float(sd) for sd in sds]
    falling = all(a > b for a, b in itertools.pairwise(ladder))
    if not ladder or ladder[-1] <= 0 or not falling:
        raise EngineError(f"sds={sds!r}: give positive numbers that decrease")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1 or not 0 < length < 2:
        raise EngineError(
            f"steps={steps!r}, length={length!r}: give a positive whole number, and one in (0, 2)"
        )
    if start.dim() != 2 or not len(start):
        raise EngineError(f"start has shape {tuple(start.shape)}; give (N, D)")
    noise = Noise.seeded(seed, 1, device=start.device, dtype=start.dtype)
    x = start
    with bar("annealed Langevin", show=progress) as report:
        for level, sd in enumerate(ladder):
            size = length * sd
            for step in range(steps):
                normal = noise.fold(level, step).normal(*x.shape)[0]
                x = x + 0.5 * size**2 * score(x, sd) + size * normal
            if not bool(torch.isfinite(x).all()):
                raise EngineError(
                    f"draws are not finite at the level sd={sd:g}: the score is wrong far from the "
                    "data, or steps are too long; begin with a larger sd, or lower length"
                )
            report((level + 1) / len(ladder), f"sd = {sd:.3g}")
    return x + ladder[-1] ** 2 * score(x, ladder[-1]) if denoise else x
