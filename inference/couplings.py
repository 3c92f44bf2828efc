"""L-lag couplings: how far a chain is from its limit after t iterations; unbiased estimates.

X runs for L iterations, then (X_t, Y_{t-L}) move together, each by itself a chain of the same
kernel and start, until they meet at tau = inf{t: X_t = Y_{t-L}} and stay together. Then, with pi_t
the law of X_t and pi that of the limit,

    TV(pi_t, pi) <= E max(0, ceil((tau - L - t) / L))             (Biswas, Jacob & Vanetti 2019),

and H_k = h(X_k) + sum_{j >= 1} h(X_{k + jL}) - h(Y_{k + (j - 1) L}) has the expectation of h under
pi (Jacob, O'Leary & Atchade 2020), as has its average H_{k:m} over k, ..., m.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import norm
from torch import Tensor

from inference import finite
from inference.coupled import Coupled, FiniteRows, Sweeps, Transitions, drawn
from inference.engine import Engine
from inference.fit import bind
from inference.gibbs import Gibbs
from inference.hmc import HMC
from inference.mh import MH
from inference.program import isolated
from ppl_models.base import Params
from ppl_models.errors import EngineError
from ppl_models.noise import Noise


class Bound(NamedTuple):
    """An upper bound on the total variation distance, estimated from pairs.

    ``error`` is its Monte Carlo standard error; ``upper`` its upper confidence limit, which is
    positive where all pairs have met, too.
    """

    value: np.ndarray
    error: np.ndarray
    upper: np.ndarray


class Estimate(NamedTuple):
    """An unbiased estimate, with its standard error."""

    value: np.ndarray
    error: np.ndarray


@dataclass(frozen=True, repr=False)
class Coupling:
    """Pairs of lagged chains that have met.

    Args:
        lag: L.
        meeting: tau of each pair, (P,).
        x: X_0, ..., X_T of each pair, (T + 1, P, *shape).
        y: Y_0, ..., Y_{T - L}, (T + 1 - L, P, *shape).
        constrain: from those to what functions take: values by site, (n, P, *shape).
    """

    lag: int
    meeting: np.ndarray
    x: Any
    y: Any
    constrain: Callable[[Any], Any] = field(default=lambda x: x)

    @property
    def pairs(self) -> int:
        """P."""
        return len(self.meeting)

    def bound(self, iterations: ArrayLike, level: float = 0.99) -> Bound:
        """The bound on TV(pi_t, pi) at each t: E max(0, ceil((tau - L - t) / L)).

        It may be above 1 for small t; a larger lag makes it sharper. ``upper`` is at confidence
        ``level``, one-sided: value + z error + log(1 / (1 - level)) / P, the last term being the
        limit where none of P pairs is apart any more.
        """
        t = np.asarray(iterations)[..., None]
        each = np.maximum(0, np.ceil((self.meeting - self.lag - t) / self.lag))
        value, error = each.mean(-1), each.std(-1, ddof=1) / np.sqrt(self.pairs)
        unseen = -np.log1p(-level) / self.pairs
        return Bound(value, error, value + norm.ppf(level) * error + unseen)

    def mixing_time(self, distance: float = 0.25) -> int:
        """The first t at which the bound is at most ``distance``."""
        t = np.arange(int(self.meeting.max()) - self.lag + 1)
        return int(np.argmax(self.bound(t).value <= distance))

    def unbiased(self, function: Callable[[Any], Any], k: int, m: int) -> Estimate:
        """E h under the limit, by H_{k:m} averaged over pairs.

            H_{k:m} = sum_{t=k}^{m} h(X_t) / (m - k + 1)
                      + sum_{t=k+L}^{tau-1} v_t (h(X_t) - h(Y_{t-L})) / (m - k + 1),

        v_t the number of l in k, ..., m that are t less a positive multiple of L.

        Args:
            function: h, of the values by site, each (n, P, *shape), to (n, P, ...).
            k: iterations left out; about where the bound is small.
            m: the last iteration averaged over; a few times k. At most the ``length`` coupled.

        Raises ``EngineError`` where the chains are shorter than m.
        """
        if not 0 <= k <= m < len(self.x):
            raise EngineError(
                f"k={k}, m={m}: give 0 <= k <= m < {len(self.x)}, or couple with length={m}"
            )
        last = max(m, int(self.meeting.max()) - 1)
        x = self._function(function, self.x[: last + 1])
        y = self._function(function, self.y[: max(1, last + 1 - self.lag)])
        total = x[k : m + 1].sum(0)
        for t in range(k + self.lag, int(self.meeting.max())):
            first = -(-max(self.lag, t - m) // self.lag)
            weight = (t - k) // self.lag - first + 1
            apart = (t < self.meeting).reshape(-1, *[1] * (x.ndim - 2))
            total = total + np.where(apart, weight * (x[t] - y[t - self.lag]), 0.0)
        each = total / (m - k + 1)  # (P, ...)
        return Estimate(each.mean(0), each.std(0, ddof=1) / np.sqrt(self.pairs))

    def __repr__(self) -> str:
        return (
            f"Coupling({self.pairs} pairs at lag {self.lag}, meeting after "
            f"{np.median(self.meeting) - self.lag:.0f} iterations in the median, "
            f"{self.meeting.max() - self.lag} at most)"
        )

    def _function(self, function: Callable[[Any], Any], x: Any) -> np.ndarray:
        value = function(self.constrain(x))
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.shape[:2] != (len(x), self.pairs):
            raise EngineError(
                f"function gave the shape {array.shape}; it must keep the first two dimensions, "
                f"({len(x)}, {self.pairs})"
            )
        return array.astype(float)


def coupling(
    model: Callable[..., Any],
    data: Any,
    engine: Engine,
    *,
    lag: int = 100,
    pairs: int = 100,
    length: int = 0,
    start: Callable[[Noise], Tensor] | None = None,
    most: int = 100_000,
    seed: int = 0,
) -> Coupling:
    """Couple pairs of lagged chains of an engine on a model, all in one batch.

    ``MH`` (the random walk): proposals by a reflection that makes them equal as often as can be,
    acceptance by one uniform number. ``HMC``: common momenta and uniform number, which bring chains
    together where the density is log-concave (Heng & Jacob 2019). ``Gibbs``: common random numbers.
    The latter two end every iteration with a small reflected random-walk step, by which chains that
    are near meet: the bound is for the kernel with that step. Step size and scale are those of the
    engine's own warm-up, and fixed; an iteration is one transition, whatever ``thin`` says.

    Args:
        model, data: as for ``fit``.
        engine: ``MH()``, ``HMC()`` or ``Gibbs()``; ``chains`` are those of the warm-up.
        lag: L; where the bound is far above 1 or falls slowly, raise it.
        pairs: P; the bound's error falls like 1 / sqrt(P).
        length: the chains are continued so far after meeting, for ``unbiased(..., m=length)``.
        start: the law of X_0: one point for each stream of noise, (C,) -> (C, D) unconstrained; by
            default where the engine starts, uniform on (-2, 2)^D.
        most: iterations after which it gives up.
        seed: of everything.

    Raises:
        EngineError: another engine, or pairs that have not met after ``most`` iterations.

    Example:
        >>> import pyro
        >>> import pyro.distributions as dist
        >>> from inference import MH, coupling
        >>> def program():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> pairs = coupling(program, None, MH(tier="traced"), lag=20, pairs=200, length=60)
        >>> bool(pairs.bound(20).value < 0.1)
        True
        >>> square = pairs.unbiased(lambda values: values["x"] ** 2, k=20, m=60)
        >>> bool(abs(square.value - 1) < 5 * square.error)
        True
    """
    for name, value, least in (("lag", lag, 1), ("pairs", pairs, 2), ("length", length, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise EngineError(f"{name}={value!r}: give a whole number of at least {least}")
    if not isinstance(engine, MH | HMC | Gibbs) or getattr(engine, "proposal", None):
        raise EngineError(
            f"chains of {type(engine).__name__} cannot be coupled; give MH() without a proposal, "
            "HMC() or Gibbs()"
        )
    problem = bind(model, data, seed=seed)
    engine.check(model, problem.program)
    with isolated(problem.dtype, problem.device), torch.no_grad():
        target = problem.target("traced", 1000)
        noise = problem.noise(pairs)
        begin = start or target.start
        x, y = begin(noise.fold(0)), begin(noise.fold(1))
        kernel: Any = Sweeps if isinstance(engine, Gibbs) else Transitions
        moving = kernel(problem, engine, target, noise.fold(2))
        paths = _run(moving, x, y, lag, length, most)

    def constrain(x: Tensor) -> Params:
        with isolated(problem.dtype, problem.device), torch.no_grad():
            return problem.outputs.constrain(x)

    return Coupling(lag, *paths, constrain)


def couple_finite(
    transition: ArrayLike,
    start: ArrayLike,
    *,
    lag: int = 1,
    pairs: int = 1000,
    length: int = 0,
    most: int = 100_000,
    seed: int = 0,
) -> Coupling:
    """Couple pairs of lagged chains on finitely many states, each step by a maximal coupling.

    Args:
        transition: P, (S, S).
        start: the law of X_0, (S,), or a state.
        lag, pairs, length, most, seed: as of ``coupling``.

    Raises:
        EngineError: pairs that have not met after ``most`` iterations.
    """
    finite.stationary(transition)  # raises where it is none, or parts of it never meet
    p, law = np.asarray(transition, dtype=float), np.asarray(start, dtype=float)
    if law.ndim == 0:
        law = np.eye(len(p))[int(law)]
    rng = np.random.default_rng(seed)
    x, y = (drawn(np.broadcast_to(law, (pairs, len(p))), rng.uniform(size=pairs)) for _ in range(2))
    paths = _run(FiniteRows(p, rng), torch.as_tensor(x), torch.as_tensor(y), lag, length, most)
    return Coupling(lag, paths[0], paths[1].numpy(), paths[2].numpy())


def _run(
    kernel: Coupled, x: Tensor, y: Tensor, lag: int, length: int, most: int
) -> tuple[np.ndarray, Tensor, Tensor]:
    """Meeting times, and the paths of X and Y."""
    pairs = len(x)
    meeting = np.zeros(pairs, dtype=int)
    first, second = [x], [y]
    state = kernel.init(x)
    for t in range(1, lag + 1):
        state = kernel.alone(state, t)
        first.append(kernel.position(state))
    joint = kernel.join(state, kernel.init(y))
    met = _equal(first[-1], y)
    meeting[met.numpy()] = lag
    t = lag
    while t < length or not bool(met.all()):
        if t >= most:
            raise EngineError(
                f"{int((~met).sum())} of {pairs} pairs have not met after {most} iterations: the "
                "chains mix slowly, or sit in different modes; lengthen warmup, reparametrise, or "
                "raise most"
            )
        t += 1
        joint = kernel.together(joint, met, t)
        at = kernel.position(joint)
        first.append(at[:pairs])
        second.append(at[pairs:])
        now = _equal(at[:pairs], at[pairs:])
        meeting[(now & ~met).numpy()] = t
        met = met | now
    return meeting, torch.stack(first), torch.stack(second)


def _equal(x: Tensor, y: Tensor) -> Tensor:
    same = (x == y).cpu()
    return same if same.dim() == 1 else same.all(-1)
