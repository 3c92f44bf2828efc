"""Models: Pyro programs with the closed forms they have to offer.

Subclass ``Model`` for a program of your own, or give a plain Pyro function. ``HasEM``,
``HasMeanField``, ``HasConditionals``, ``HasGuide``, ``HasRows``, ``HasScore``, ``HasMStep`` and
``HasPretraining`` are the capabilities that engines ask for.
"""

from ppl_models.base import (
    HasConditionals,
    HasEM,
    HasGuide,
    HasMeanField,
    HasMStep,
    HasPretraining,
    HasRows,
    HasScore,
    Model,
)
from ppl_models.errors import DataError, EngineError, ModelError, SuiteError
from ppl_models.flow import Flow
from ppl_models.gmm import GaussianMixture
from ppl_models.lda import LatentDirichletAllocation
from ppl_models.logistic import LogisticRegression
from ppl_models.mixture_ppca import MixturePPCA
from ppl_models.naive_bayes import NaiveBayes
from ppl_models.noise import Noise
from ppl_models.oring import ORing
from ppl_models.ppca import PPCA
from ppl_models.priors import CoefficientPrior, FlatPrior, NormalPrior, RobertCasella
from ppl_models.score_models import EnergyModel, ScoreModel
from ppl_models.vade import VaDE
from ppl_models.vae import VAE, ConditionalVAE

__all__ = [
    "PPCA",
    "VAE",
    "CoefficientPrior",
    "ConditionalVAE",
    "DataError",
    "EnergyModel",
    "EngineError",
    "FlatPrior",
    "Flow",
    "GaussianMixture",
    "HasConditionals",
    "HasEM",
    "HasGuide",
    "HasMStep",
    "HasMeanField",
    "HasPretraining",
    "HasRows",
    "HasScore",
    "LatentDirichletAllocation",
    "LogisticRegression",
    "MixturePPCA",
    "Model",
    "ModelError",
    "NaiveBayes",
    "Noise",
    "NormalPrior",
    "ORing",
    "RobertCasella",
    "ScoreModel",
    "SuiteError",
    "VaDE",
]
