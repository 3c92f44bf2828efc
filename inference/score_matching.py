"""Score matching as an objective of training by minibatches.

The expected squared error of a score, up to a constant, by one of the losses of
``ppl_models.score``. A model with a ladder of noise levels is trained at all of them, each row at
one drawn at random, with losses weighted by d^2 so that all levels count alike (Song & Ermon 2019).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from inference.objectives import Objective
from ppl_models import score as losses
from ppl_models.base import Data, HasRows, HasScore
from ppl_models.errors import EngineError, ModelError
from ppl_models.score_models import ScoreModel


@dataclass(frozen=True)
class ScoreMatching(Objective):
    """The squared error of the score of each row, up to a constant.

    Args:
        kind: "implicit", with the exact trace, which takes D backward passes; "sliced", with random
            directions; or "denoising", the score of rows with noise added. A model with noise
            levels is trained by the last at all its levels.
        sd: of the noise, for "denoising" without levels.
        directions: per row, for "sliced".

    Example:
        >>> import torch
        >>> from inference import SVI, ScoreMatching, fit
        >>> from ppl_models import ScoreModel
        >>> from ppl_models.denoisers import MLPDenoiser
        >>> model = ScoreModel(MLPDenoiser(2, 32), 2, sds=(4.0, 2.0, 1.0, 0.5))
        >>> engine = SVI(objective=ScoreMatching("denoising"), steps=100, plateau=False)
        >>> fit(model, torch.randn(200, 2), engine).model.score(torch.zeros(3, 2), 0.5).shape
        torch.Size([3, 2])
    """

    kind: Literal["implicit", "sliced", "denoising"] = "implicit"
    sd: float | None = None
    directions: int = 1

    needs = HasScore
    bounds = False

    def __post_init__(self) -> None:
        if self.kind not in ("implicit", "sliced", "denoising"):
            raise EngineError(
                f"ScoreMatching({self.kind!r}): choose 'implicit', 'sliced' or 'denoising'"
            )
        self._whole("directions")
        if self.sd is not None and not (self.kind == "denoising" and self.sd > 0):
            raise EngineError(
                f"ScoreMatching({self.kind!r}, sd={self.sd!r}): give a positive number, and "
                "'denoising', which it is for"
            )

    def check(self, model: HasRows, data: Data) -> None:
        """Refuse a loss that the model is not for. Raises ``ModelError``."""
        levels = isinstance(model, ScoreModel) and bool(model.sds)
        if levels and (self.kind != "denoising" or self.sd is not None):
            raise ModelError(
                "the model has noise levels, which are trained by ScoreMatching('denoising') "
                "without sd; use that, or a model with sds=()"
            )
        if not levels and self.kind == "denoising" and self.sd is None:
            raise ModelError(
                "ScoreMatching('denoising') needs sd=, the noise to add, or a model with sds"
            )

    def losses(self, model: HasRows, data: Data) -> Tensor:
        assert isinstance(model, HasScore)  # as the engine has checked
        x = data["x"]
        if self.kind == "implicit":
            return losses.implicit(model.score, x)
        if self.kind == "sliced":
            return losses.sliced(model.score, x, directions=self.directions)
        if self.sd is not None:
            return losses.denoising(model.score, x, self.sd)
        assert isinstance(model, ScoreModel)
        ladder = torch.tensor(model.sds).to(x)
        sd = ladder[torch.randint(len(ladder), (len(x), 1), device=x.device)]
        return sd[:, 0].square() * losses.denoising(lambda noisy: model.score(noisy, sd), x, sd)
