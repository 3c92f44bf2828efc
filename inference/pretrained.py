"""Deep mixtures in three stages: an autoencoder, a mixture of its codes by EM, all together.

Jiang, Zheng, Tan, Tang & Zhou (2017), "Variational deep embedding". Trained from nothing, such a
model puts all rows into one cluster or a few, and stays there.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.em import EM
from inference.engine import Engine, Posterior, Problem
from inference.finding import Finding
from inference.fit import InferenceWarning, fit
from inference.objectives import Objective
from inference.program import Program
from inference.recording import InMemory
from inference.svi import SVI
from inference.training import Trainer
from inference.weights import put
from ppl_models.base import Data, HasPretraining, HasRows, Model
from ppl_models.errors import EngineError
from ppl_models.gmm import GaussianMixture

_FLOOR = 1e-3  # of the mixture's covariances, as a share of that of all codes


@dataclass(frozen=True)
class Reconstruction(Objective):
    """The loss of the first stage, of the model's own choice."""

    needs: ClassVar[type[Model]] = HasPretraining

    bounds: ClassVar[bool] = False

    def losses(self, model: HasRows, data: Data) -> Tensor:
        if not isinstance(model, HasPretraining):
            raise EngineError(f"{type(model).__name__} lacks the losses of a first stage")
        return model.pretraining_losses(data)


@dataclass(frozen=True)
class Pretrained(Engine):
    """Two stages before the training of a deep mixture (``HasPretraining``).

    First the networks are trained as an autoencoder, with the settings of ``engine`` for so many
    ``steps``; then a mixture is fitted to the codes of all rows by EM, with covariances of the
    model's kind; from there ``engine`` trains all weights together.

    Args:
        engine: the last stage, such as ``SVI(batch_size=128)``.
        steps: of the first stage.
        em: of the second; by default it seeks the highest likelihood from 20 starts.

    A run that goes on from ``resume=`` is in its last stage; one that was killed before begins
    anew.
    """

    engine: SVI = field(default_factory=SVI)
    steps: int = 2000
    em: EM = field(default_factory=lambda: EM(restarts=20, tol=1e-4, objective="likelihood"))

    needs: ClassVar[type[Model] | None] = HasPretraining
    stops_at: ClassVar[tuple[str, ...]] = ("seconds",)

    def __post_init__(self) -> None:
        self.at_least(steps=1)
        if not isinstance(self.engine, SVI) or not isinstance(self.em, EM):
            raise EngineError("Pretrained(engine, em=...): give an SVI and an EM, with settings")

    def trains(self, model: Any) -> bool:
        return True

    def by_rows(self, model: Any) -> bool:
        return self.engine.by_rows(model)

    def bound(self, model: Any, data: Data) -> Data:
        return self.engine.bound(model, data)

    def check(self, model: Any, program: Program) -> None:
        super().check(model, program)
        self.engine.check(model, program)
        if not self.engine.by_rows(model):
            raise EngineError(
                "Pretrained(SVI(guide=...)): the model is trained with its own guide; leave it out"
            )

    def check_store(self, model: Any) -> None:
        self.engine.check_store(model)

    def run(self, problem: Problem) -> Posterior:
        """All three stages."""
        found: list[Finding] = []
        if problem.records.saved() is None:
            self._autoencode(problem)
            found = self._cluster(problem)
        posterior = self.engine.run(problem)
        return replace(posterior, findings=[*posterior.findings, *found])

    def _autoencode(self, problem: Problem) -> None:
        training = replace(
            self.engine.training(),
            objective=Reconstruction(),
            steps=self.steps,
            schedule=None,
            plateau=False,
        )
        model: Any = problem.model
        trained = Trainer(replace(problem, records=InMemory()), training).run()
        if any(finding.name == "interrupted" for finding in trained.findings):
            raise KeyboardInterrupt
        put(model, trained.weights)

    def _cluster(self, problem: Problem) -> list[Finding]:
        """Fit the mixture; what is to be told of it."""
        model: Any = problem.model
        with torch.no_grad():
            codes = model.codes(problem.whole).double().cpu()
        mixture = GaussianMixture(model.clusters, model.covariance, floor=_FLOOR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InferenceWarning)
            fitted = fit(mixture, codes, self.em, seed=problem.seed, device="cpu", progress=False)
        device = problem.device
        model.adopt({name: value.to(device) for name, value in fitted.posterior.draws.items()})
        return [
            finding._replace(meaning=f"mixture of codes: {finding.meaning}")
            for finding in fitted.findings
            if finding.severity != "note"
        ]
