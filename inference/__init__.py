"""Interchangeable inference engines for Pyro programs, and what to make of their answers."""

from inference.ais import AIS
from inference.annealed import annealed_draws
from inference.approximations import corrected
from inference.bidirectional import Bounds, bidirectional
from inference.calibration import Calibration, sbc
from inference.cavi import CAVI
from inference.chees import ChEES
from inference.compare import Comparison, compare
from inference.couplings import Coupling, couple_finite, coupling
from inference.criticism import loo, loo_pit, predictive_checks, prior_predictive
from inference.diagnostics import diagnose
from inference.em import EM
from inference.engine import Engine, Posterior
from inference.finding import Finding
from inference.fit import Fit, InferenceWarning, fit, target
from inference.gaps import Gaps, inference_gaps
from inference.geweke import JointTest, geweke
from inference.gibbs import Gibbs
from inference.hmc import HMC
from inference.importance import ImportanceSampling
from inference.langevin import MALA, ULA
from inference.mams import MAMS
from inference.mcem import MCEM
from inference.mh import MH
from inference.nuts import NUTS
from inference.objectives import ELBO, ImportanceWeighted, Objective
from inference.pathfinder import Pathfinder
from inference.pretrained import Pretrained
from inference.row_wise import RowWise
from inference.sampling import Sampler
from inference.score_matching import ScoreMatching
from inference.smc import SMC
from inference.stein import Discrepancy, ksd
from inference.stopping import Until
from inference.svi import SVI
from inference.target import Target
from inference.thermodynamic import Thermodynamic
from inference.transported import Transported
from inference.twisted import TwistedSMC
from inference.two_samples import classifier_test, mmd, mode_coverage, sliced_wasserstein

__version__ = "0.1.0"
__all__ = [
    "AIS",
    "CAVI",
    "ELBO",
    "EM",
    "HMC",
    "MALA",
    "MAMS",
    "MCEM",
    "MH",
    "NUTS",
    "SMC",
    "SVI",
    "ULA",
    "Bounds",
    "Calibration",
    "ChEES",
    "Comparison",
    "Coupling",
    "Discrepancy",
    "Engine",
    "Finding",
    "Fit",
    "Gaps",
    "Gibbs",
    "ImportanceSampling",
    "ImportanceWeighted",
    "InferenceWarning",
    "JointTest",
    "Objective",
    "Pathfinder",
    "Posterior",
    "Pretrained",
    "RowWise",
    "Sampler",
    "ScoreMatching",
    "Target",
    "Thermodynamic",
    "Transported",
    "TwistedSMC",
    "Until",
    "annealed_draws",
    "bidirectional",
    "classifier_test",
    "compare",
    "corrected",
    "couple_finite",
    "coupling",
    "diagnose",
    "fit",
    "geweke",
    "inference_gaps",
    "ksd",
    "loo",
    "loo_pit",
    "mmd",
    "mode_coverage",
    "predictive_checks",
    "prior_predictive",
    "sbc",
    "sliced_wasserstein",
    "target",
]
