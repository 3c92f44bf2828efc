"""What a model is: a Pyro program, plus the capabilities it may offer beyond its program.

A model is an ordinary Pyro program in ``forward``, with data as keyword arguments. Engines ask for
a capability by its class (``HasEM``, ``HasMeanField``, ``HasConditionals``, ``HasGuide``,
``HasRows``, ``HasScore``, ``HasPretraining``), never by ``hasattr``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from ppl_models.data import as_fields
from ppl_models.exhibits import Exhibit

if TYPE_CHECKING:
    from ppl_models.noise import Noise

Data = dict[str, Any]
"""The program's keyword arguments: tensors on one device, other Python values as they are."""

Params = dict[str, Tensor]
"""Constrained values by site name; the leading dimensions are batch: chains, restarts or draws."""

Objective = Literal["joint", "likelihood"]

Use = Literal["joint", "likelihood", "chains"]
"""What an engine would do with a program: seek its mode, or the likelihood's; walk its sites."""


class Model(nn.Module, ABC):
    """A Pyro program p(x, z, theta) over data given as keyword arguments.

    Sites sampled in ``forward`` are inferred; ``nn.Parameter``s are optimised. Anything beyond the
    program is optional: a plain Pyro function serves as a model with no extra capability.
    """

    @abstractmethod
    def forward(self, **data: Any) -> None:
        """The Pyro program."""

    def prepare(self, data: Any) -> Data:
        """Check raw data and turn it into the keyword arguments of ``forward``.

        Raises ``DataError`` naming the field and the remedy, before any work is done.
        """
        return as_fields(data)

    def renewed(self, data: Data, new: Data) -> Data:
        """New data to predict for, as the posterior of a fit to ``data`` can take them.

        Raises ``DataError`` where it cannot, such as for categories that the fit has not seen.
        """
        return new

    def canonical(self, draws: Params) -> Params:
        """One representative of label or sign symmetry; draws are (chain, draw, *event)."""
        return draws

    def coordinates(self, data: Data) -> Mapping[str, Mapping[str, list[Any]]]:
        """Names for the event dimensions: ``{site: {dimension: labels}}``, in order."""
        return {}

    def invariants(self, data: Data, draws: Params) -> Params:
        """Functions of the draws that no symmetry of the model changes, for convergence checks.

        Labels may switch between chains that agree on these: {name: (chain, draw, *shape)}. They
        are recorded beside the draws, under names that no site has.
        """
        return {}

    def obstacle(self, data: Data, use: Use) -> str | None:
        """Why a use of the program with these data has no sensible answer, and what has; or None.

        Asked before any work: ``joint`` and ``likelihood`` by EM, which seeks their modes;
        ``chains`` by samplers that move all continuous sites at once.
        """
        return None

    def findings(self, data: Data, draws: Params) -> list[str]:
        """What the model knows against an answer, in words: the cause and the remedy.

        ``draws`` are (chain, draw, *event), those of a point (1, 1, *event).
        """
        return []

    def exhibits(self, data: Data, draws: Params) -> Mapping[str, Exhibit]:
        """What there is to see beside the draws, by title, for the report: images, points, bars.

        ``draws`` are as in ``findings``.
        """
        return {}


class HasEM(Model):
    """Closed-form E and M steps; restarts are a batch dimension in front."""

    @abstractmethod
    def start(self, data: Data, restarts: int, noise: Noise) -> Params:
        """Starting values, each of shape (restarts, *event)."""

    @abstractmethod
    def e_step(self, data: Data, params: Params) -> Any:
        """Expected sufficient statistics of the latent variables given ``params``."""

    @abstractmethod
    def m_step(self, data: Data, expectations: Any, objective: Objective) -> Params:
        """The maximiser of the expected joint (or likelihood) given the expectations."""

    def log_objective(self, data: Data, params: Params, objective: Objective) -> Tensor | None:
        """The objective in closed form, (restarts,), where the program would be slow; or None.

        EM watches it instead of the program's density, and compares the two at its end.
        """
        return None


class HasConditionals(Model):
    """Exact full conditionals, for Gibbs sampling; chains are a batch dimension in front."""

    @abstractmethod
    def conditionals(self, data: Data) -> Mapping[str, Callable[[Params, Noise], Params]]:
        """The blocks of one sweep, in order: each takes all values and returns the updated ones.

        The values may hold more than the program's sites, such as latent variables that the program
        sums out; those of shape (chains,) are recorded as statistics of the draws.
        """

    def initial(self, data: Data, chains: int, noise: Noise) -> Params | None:
        """Where the chains begin, (chains, *event); None for points of finite density at random."""
        return None

    def complete(self, data: Data, params: Params, noise: Noise) -> Params:
        """The values with sites drawn that the blocks integrate out (a collapsed sampler).

        Called only where a draw is kept.
        """
        return params


class HasMeanField(Model):
    """Coordinate-ascent mean field in closed form, for conditionally conjugate programs.

    The approximation is q(globals) q(locals): ``factors`` holds the natural parameters of the
    global factors, restarts in front; the optimal local factors follow from them and the data.
    """

    ascends: ClassVar[bool] = True
    """Whether no round lowers the ELBO; False where local factors have several optima."""

    @abstractmethod
    def rows(self, data: Data) -> int:
        """How many rows the data have, each with its own local factor."""

    @abstractmethod
    def initial_factors(self, data: Data, restarts: int, noise: Noise) -> Params:
        """Natural parameters to start from, each of shape (restarts, *shape)."""

    @abstractmethod
    def coordinate_step(
        self, data: Data, factors: Params, rows: Tensor | None
    ) -> tuple[Params, Tensor]:
        """One round of coordinate ascent: (new factors, ELBO (restarts,)).

        The local factors of ``rows`` (all rows if None) are optimised given ``factors``; then the
        global factors given these, each row standing for as many as the sample leaves out. The
        ELBO, estimated likewise, is that of the old global and the new local factors.
        """

    @abstractmethod
    def factor_draws(self, data: Data, factors: Params, noise: Noise, draws: int) -> Params:
        """Draws of the continuous sites from the factors of each restart: (restarts, draws, ...).

        There is a stream of ``noise`` for each restart.
        """

    @abstractmethod
    def factor_log_density(self, data: Data, factors: Params, draws: Params) -> Tensor:
        """Log density of q at constrained values of the continuous sites: (restarts, draws)."""


class HasGuide(Model):
    """An amortised guide q(z | x): a Pyro program with the arguments of ``forward``."""

    @abstractmethod
    def guide(self, **data: Any) -> None:
        """The guide program; its sample sites are the latent sites of ``forward``."""


class HasRows(HasGuide):
    """Rows that are independent given the weights: p(x, z) = prod_i p(x_i, z_i), and so for q.

    Minibatches of rows train the weights of program and guide. Both sample in one ``pyro.plate``
    over the rows at ``dim=-1``, work for any number of rows, and for a plate further out, at
    ``dim=-2``, which repeats every site: values are then (particles, rows, *event). A program
    without latent sites is fitted by maximum likelihood, and needs no guide.
    """

    def guide(self, **data: Any) -> None:
        """The guide program; it samples nothing where the program has no latent sites."""

    def rows(self, data: Data) -> int:
        """How many rows the data have: the length of the first tensor."""
        return next(len(value) for value in data.values() if isinstance(value, Tensor))

    def take(self, data: Data, rows: Tensor) -> Data:
        """Some of the rows (B,): of every tensor that has as many as the data."""
        number = self.rows(data)

        def some(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) and len(value) == number else value

        return {name: some(value) for name, value in data.items()}

    def refreshed(self, data: Data) -> Data:
        """A minibatch as a step of training sees it, such as binarised anew; drawn by torch."""
        return data


class HasScore(HasRows):
    """Known by the gradient of its log density: trained by score matching, without its constant."""

    @abstractmethod
    def score(self, x: Tensor, sd: float | Tensor | None = None) -> Tensor:
        """The gradient of the log density at rows (B, D), of data with noise of that sd added."""


class HasPretraining(HasRows):
    """Weights that need two stages before their training: a loss, then a mixture of codes.

    The clusters of a deep mixture start from those of a mixture fitted to the codes of rows, which
    networks give that were trained by a loss of their own.
    """

    clusters: int
    covariance: Literal["diagonal", "full"]

    @abstractmethod
    def pretraining_losses(self, data: Data) -> Tensor:
        """The loss of each row in the first stage: (B,)."""

    @abstractmethod
    def codes(self, data: Data) -> Tensor:
        """Where the networks put each row: (N, latent)."""

    @abstractmethod
    def adopt(self, mixture: Params) -> None:
        """Start the clusters from the sites of a ``GaussianMixture`` of the same covariance."""


class HasMStep(HasRows):
    """Some weights have a closed-form M step given draws of the latents, for Monte Carlo EM."""

    @abstractmethod
    def statistics(self, data: Data, latents: Params) -> Params:
        """Sufficient statistics of data with latents {site: (K, B, *event)}, as means over both."""

    @abstractmethod
    def maximiser(self, statistics: Params) -> Params:
        """The weights, by their names in the module, at which the mean log joint is highest."""
