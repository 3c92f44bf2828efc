"""A program and its data become plain functions of tensors.

Running a program under handlers gives its latent sites, their transforms to the real line, and
its log joint density with discrete sites summed out by parallel enumeration. Everything
downstream (targets, engines) sees functions of flat unconstrained vectors.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.inspect import get_model_relations
from pyro.infer.mcmc.util import TraceEinsumEvaluator
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn
from torch.distributions import biject_to

from inference.codegen.build import Attempt
from inference.handlers import (
    AllMet,
    Initialise,
    Matching,
    Substitute,
    Unobserve,
    UpToTheLast,
    Values,
    simulate,
    with_real_observations,
)
from inference.sites import (
    enumerate_support,
    inverse_shape,
    is_deterministic,
    is_discrete,
    is_factor,
    sample_sites,
    value_of,
)
from ppl_models.errors import DataError, ModelError, SuiteError

HELD = -1e10
"""A tilt that rules a value of a discrete site out."""

_NEARER = (1.0, 0.1, 0.1)  # shares by which a point that underflows is moved to the origin

_PROTOTYPES = 20  # runs at random values, of which one must be legal

_SUBSETS_OF = 8  # data fields: of more, no subset is tried as the rows of a plate


class Site(NamedTuple):
    """A continuous latent site and its place in the flat unconstrained vector."""

    name: str
    shape: torch.Size  # of the constrained value: plates, then event
    unconstrained: torch.Size
    offset: int

    @property
    def size(self) -> int:
        return self.unconstrained.numel()


class DiscreteSite(NamedTuple):
    """A discrete latent site, summed out by enumeration of its ``support``."""

    name: str
    batch: torch.Size  # plates
    support: Tensor  # (K, *event)


def trained() -> Any:
    """The state of Pyro's parameter store, empty where it holds nothing."""
    store = pyro.get_param_store()
    return store.get_state() if len(store) else {}


class Minibatch(NamedTuple):
    """Rows of a plate: ``batch`` of ``size``, and the data fields that have them."""

    plate: str
    size: int
    batch: int
    fields: list[str]


@contextlib.contextmanager
def isolated(
    dtype: torch.dtype,
    device: torch.device = torch.device("cpu"),  # noqa: B008
    *,
    validate: bool = False,
    parameters: Any = None,
) -> Iterator[None]:
    """Run Pyro so that nothing leaks: parameters, random state, dtype and validation are scoped.

    On a GPU, tensors that the program makes itself are made there. ``parameters`` is the state of
    the parameter store to begin with; by default it is empty.
    """
    before = torch.get_default_dtype()
    with (
        contextlib.nullcontext() if device.type == "cpu" else device,
        torch.random.fork_rng(),
        pyro.get_param_store().scope(),
        pyro.validation_enabled(validate),
    ):
        torch.set_default_dtype(dtype)
        if parameters:
            pyro.get_param_store().set_state(parameters)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


class Program:
    """A Pyro program bound to its data.

    Args:
        model: a Pyro function or module; called as ``model(**data)``.
        data: its keyword arguments, already on the device and in the dtype of the fit.
        plate_nesting: at least so many dimensions are kept for plates, where some are hidden.

    Raises:
        DataError: the arguments do not match the program's, or an observed value is NaN.
        ModelError: the program fails, changes its structure between runs, or has a discrete latent
            site that cannot be summed out (without finite support, or used outside its plates).
    """

    def __init__(
        self, model: Callable[..., Any], data: Mapping[str, Any], *, plate_nesting: int = 0
    ) -> None:
        self.model = with_real_observations(model)
        self.data = dict(data)
        _check_arguments(model, self.data)
        first, second = self._prototype(0), self._prototype(1)
        _check_structure(first, second)
        latent = [site for site in sample_sites(first) if not site["is_observed"]]
        self.sites: list[Site] = []
        self.discrete: list[DiscreteSite] = []
        offset = 0
        for site in latent:
            distribution = site["fn"]
            if is_discrete(distribution):
                support = enumerate_support(site["name"], distribution)
                self.discrete.append(DiscreteSite(site["name"], distribution.batch_shape, support))
                continue
            shape = distribution.shape()
            unconstrained = inverse_shape(biject_to(distribution.support), shape)
            self.sites.append(Site(site["name"], shape, unconstrained, offset))
            offset += unconstrained.numel()
        self.dim = offset
        self.observed = [
            site["name"]
            for site in sample_sites(first)
            if site["is_observed"] and not is_factor(site)
        ]
        self.observations = {
            str(site["name"]): site["value"] for site in sample_sites(first) if site["is_observed"]
        }
        self.deterministic = [
            str(site["name"]) for site in first.nodes.values() if is_deterministic(site)
        ]
        self.parameters = [
            name for name, site in first.nodes.items() if site["type"] == "param"
        ] + ([name for name, _ in model.named_parameters()] if isinstance(model, nn.Module) else [])
        self.subsampled = [
            site["name"]
            for site in first.nodes.values()
            if site["type"] == "sample"
            and isinstance(site["fn"], _Subsample)
            and (site["fn"].subsample_size or site["fn"].size) < site["fn"].size
        ]
        self._latent_frames = {
            site["name"]: {frame.name for frame in site["cond_indep_stack"]} for site in latent
        }
        # outer plates first: given those sites, the elements within a plate are independent
        self.discrete.sort(key=lambda site: len(self._latent_frames[site.name]))
        self._observed_frames = {
            site["name"]: [f for f in site["cond_indep_stack"] if f.vectorized]
            for site in sample_sites(first)
            if site["is_observed"]
        }
        self._observed_shape = {
            site["name"]: site["fn"].batch_shape
            for site in sample_sites(first)
            if site["is_observed"]
        }
        frames = [frame for site in sample_sites(first) for frame in site["cond_indep_stack"]]
        nested = max((-frame.dim for frame in frames if frame.vectorized), default=0)
        self.plate_nesting = max(nested, plate_nesting)
        self.random = None if self.subsampled else self._random_site(first)
        # of the log density, for targets to share; what changes is none of its constants
        buffers = isinstance(model, nn.Module) and any(True for _ in model.buffers())
        self.compiled = None if self.parameters or buffers else Attempt()
        if self.discrete and not self.subsampled and self.random is None:
            self._check_enumeration(first)

    # -- densities -------------------------------------------------------------------------------

    def log_density(self, x: Tensor, *tilts: Tensor, wide: bool = False) -> Tensor:
        """Log joint density at a flat unconstrained point, with the log Jacobian: (D,) -> ().

        With ``wide`` the terms of each site and its Jacobian are added up in float64, whatever they
        are themselves, unless there are discrete sites: of a million terms in float32 the sum would
        be known to 0.1, and so would differences of energies be. (What ``.to_event`` makes one
        term, its distribution adds up.)

        Discrete sites are summed out. ``tilts``, one per discrete site of shape (*batch, K), are
        added to the log factors of its K values: the gradient with respect to a tilt, at zero,
        is the posterior probability of each value.
        """
        total = torch.float64 if wide else None
        substitute = Substitute(self._split(x), constrained=False, total=total)
        return self._log_joint(substitute, tilts, wide=wide) + substitute.log_det

    def log_joint(self, values: Values) -> Tensor:
        """Log joint density of constrained values, without a Jacobian."""
        return self._log_joint(Substitute(values, constrained=True))

    def log_likelihood(self, values: Values) -> Tensor:
        """Log likelihood of constrained values: the joint without the priors of its sites."""
        return self._log_joint(Substitute(values, constrained=True), priors=False)

    def prior(self) -> Callable[..., Any]:
        """The program without its observations: its latent sites are drawn from the prior."""
        return poutine.block(self.model, hide_fn=lambda site: bool(site.get("is_observed")))

    def pointwise(self, x: Tensor) -> Values:
        """Log likelihood of each observation given the continuous sites: {site: (*plates)}.

        Discrete sites are summed out. Raises ``ModelError`` where these tie observations together,
        so that the log likelihood is no sum over them.
        """
        trace = self._trace(Substitute(self._split(x), constrained=False))
        trace.compute_log_prob()
        sites = {site["name"]: site for site in sample_sites(trace)}
        logs: Values = {name: site["unscaled_log_prob"] for name, site in sites.items()}
        dims = {d.name: sites[d.name]["infer"]["_enumerate_dim"] for d in self.discrete}
        uses = {
            name: {d for d, dim in dims.items() if log.dim() >= -dim and log.shape[dim] > 1}
            for name, log in logs.items()
        }
        result = {}
        for name in self.observed:
            tied = _connected(uses[name], [uses[d] for d in dims])
            prior = [other for other in logs if other != name and uses[other] & tied]
            for other in prior:
                same = sites[other]["cond_indep_stack"] == sites[name]["cond_indep_stack"]
                if sites[other]["is_observed"] or not same:
                    why = "is observed too" if sites[other]["is_observed"] else "has other plates"
                    raise ModelError(
                        f"{name}: no pointwise log likelihood, because the discrete site "
                        f"'{min(uses[other] & tied)}' ties its values together: '{other}' {why}; "
                        "marginalise the discrete site in the program"
                    )
            log_prob = logs[name]
            if tied:
                before = torch.stack(torch.broadcast_tensors(*(logs[o] for o in prior))).sum(0)
                log_prob = self._sum_out(before + log_prob) - self._sum_out(before)
            result[name] = log_prob.reshape(self._observed_shape[name])
        return result

    def _sum_out(self, log_prob: Tensor) -> Tensor:
        """Sum over the enumerated dimensions, which lie left of all plates."""
        keep = log_prob.shape[log_prob.dim() - self.plate_nesting :]
        return log_prob.reshape(-1, *keep).logsumexp(0)

    def minibatch(self, batch: int) -> Minibatch:
        """Which data a minibatch of ``batch`` rows slices, and by how much it is scaled.

        The rows are those of the outermost plate around every observed site; the fields sliced are
        those with as many rows. Raises ``ModelError`` where there is no such plate.
        """
        frames = [self._observed_frames[name] for name in self.observed]
        shared = set.intersection(*(set(f) for f in frames)) if frames else set()
        plates = sorted(shared, key=lambda frame: frame.dim or 0)
        if not plates:
            raise ModelError(
                "batch_size needs the observations in a plate; put them in "
                "`with pyro.plate('observations', len(y)):`"
            )
        name, size = plates[0].name, int(plates[0].size)
        local = [site for site in self._latent_frames if name in self._latent_frames[site]]
        continuous = [site.name for site in self.sites if site.name in local]
        if continuous:
            raise ModelError(
                f"batch_size: the site '{continuous[0]}' lies in the plate '{name}', one value per "
                "row; marginalise it, give a guide program that amortises it, or use all rows"
            )
        outside = [site.name for site in self.discrete if site.name not in local]
        if outside:
            raise ModelError(
                f"batch_size: the discrete site '{outside[0]}' lies outside the plate '{name}' and "
                "ties its rows together; marginalise it, or use all rows"
            )
        if batch > size:
            raise ModelError(f"batch_size={batch} is more than the {size} rows of '{name}'")
        return Minibatch(name, size, batch, self._fields(name, size))

    def _fields(self, plate: str, size: int) -> list[str]:
        """The data fields whose rows are those of the plate.

        A field may have as many rows by accident, so that all subsets are tried, the largest first,
        for one by which two parts of the rows add up to the whole.
        """
        fields = [k for k, v in self.data.items() if _rows(v) == size]
        x = self.example()
        rows = torch.arange(size, device=x.device)
        parts = [part for part in (rows[rows % 3 == 0], rows[rows % 3 > 0]) if len(part)]
        whole = self.log_density(x)
        counts = range(len(fields), 0, -1) if len(fields) <= _SUBSETS_OF else [len(fields)]
        for subset in itertools.chain(*(itertools.combinations(fields, n) for n in counts)):
            try:
                added = sum(
                    len(part)
                    / size
                    * self.log_density_of(Minibatch(plate, size, len(part), [*subset]), x, part)
                    for part in parts
                )
            except (RuntimeError, ValueError, IndexError):  # shapes that no longer fit
                continue
            if _close(torch.as_tensor(added), whole) or not bool(torch.isfinite(whole)):
                return list(subset)
        raise ModelError(
            f"batch_size: the log density does not split into the rows of the plate '{plate}', "
            f"whatever is sliced of {', '.join(fields) or 'the data'}; give the plate the length "
            "of the data, as len(y), and take means and the like of the data outside the program"
        )

    def log_density_of(self, minibatch: Minibatch, x: Tensor, rows: Tensor) -> Tensor:
        """``log_density`` estimated, without bias, from some rows of the data."""
        data = {k: v[rows] if k in minibatch.fields else v for k, v in self.data.items()}
        substitute = Substitute(self._split(x), constrained=False)
        trace = self._trace(substitute, data)
        trace.compute_log_prob()
        beside = x.new_zeros(())  # what lies outside the plate, not to be scaled
        for site in sample_sites(trace):
            if all(frame.name != minibatch.plate for frame in site["cond_indep_stack"]):
                beside = beside + site["log_prob_sum"]
        scale = minibatch.size / minibatch.batch
        return beside + scale * (self._marginal(trace) - beside) + substitute.log_det

    # -- values ----------------------------------------------------------------------------------

    def constrain(self, x: Tensor) -> Values:
        """Constrained values of the continuous latent sites: (D,) -> {site: shape}."""
        met = self._met(self._split(x), constrained=False).met
        return {site.name: met[site.name]["value"].reshape(site.shape) for site in self.sites}

    def log_jacobian(self, x: Tensor) -> Tensor:
        """Log determinant of the Jacobian of ``constrain``: (D,) -> ()."""
        return x.new_zeros(()) + self._met(self._split(x), constrained=False).log_det

    def unconstrain(self, values: Values) -> Tensor:
        """The flat unconstrained point of constrained values; inverse of ``constrain``."""
        met = self._met(values, constrained=True).met
        parts = []
        for site in self.sites:
            latent = met[site.name]
            parts.append(biject_to(latent["fn"].support).inv(latent["value"]).reshape(-1))
        return torch.cat(parts) if parts else torch.zeros(0)

    def _met(self, values: Values, *, constrained: bool) -> UpToTheLast:
        """What the continuous sites were met as, in a run that ends with the last of them."""
        sites = UpToTheLast(values, {site.name for site in self.sites}, constrained=constrained)
        with contextlib.suppress(AllMet):
            self._trace(sites)
        return sites

    def deterministics(self, values: Values) -> Values:
        """The ``pyro.deterministic`` sites given all latent values, discrete ones included."""
        with Substitute(values, constrained=True), poutine.trace() as tracer:
            self.model(**self.data)
        return {name: value_of(tracer.trace, name) for name in self.deterministic}

    def predict(self, values: Values, data: Mapping[str, Any] | None = None) -> Values:
        """One draw of the observed sites given latent values: posterior predictive."""
        with poutine.trace() as tracer, Substitute(values, constrained=True), Unobserve():
            self.model(**(self.data if data is None else data))
        return {name: value_of(tracer.trace, name) for name in self.observed}

    def predictive(self, draws: Values, seed: int, data: Mapping[str, Any] | None = None) -> Values:
        """One draw of the observed sites for each draw of the latents: {site: (..., *shape)}.

        With new ``data``, a discrete site in the plates of an observed one belongs to rows that are
        no longer there: it is drawn anew by the program.

        Raises:
            DataError: the new data do not match the program's arguments.
            ModelError: the program fails on them, or a latent site has another shape with them.
        """
        shapes = {site.name: len(site.shape) for site in self.sites}
        shapes |= {s.name: len(s.batch) + s.support.dim() - 1 for s in self.discrete}
        names = [n for n in shapes if n in draws and not (data is not None and self._by_row(n))]
        lead = torch.Size()  # of a program without latent sites
        if names:
            first = draws[names[0]]
            lead = first.shape[: first.dim() - shapes[names[0]]]
        rows = {n: draws[n].reshape(-1, *draws[n].shape[len(lead) :]) for n in names}
        if data is not None:
            _check_arguments(self.model, data)
            self._check_new({n: row[0] for n, row in rows.items()}, data)

        def once(index: Tensor) -> Values:
            return self.predict({n: row[index] for n, row in rows.items()}, data)

        result = simulate(once, lead.numel(), seed)
        return {name: value.reshape(*lead, *value.shape[1:]) for name, value in result.items()}

    def _by_row(self, name: str) -> bool:
        """Whether a discrete site has one value per observation."""
        if all(site.name != name for site in self.discrete):
            return False
        own = self._latent_frames[name]
        rows = [{frame.name for frame in self._observed_frames[o]} for o in self.observed]
        return bool(own) and own in rows

    def _check_new(self, values: Values, data: Mapping[str, Any]) -> None:
        try:
            with torch.random.fork_rng(), Matching(values, constrained=True), Unobserve():
                self.model(**data)
        except SuiteError:
            raise
        except Exception as error:
            raise ModelError(
                f"the program failed on the new data: {_cause(error)}; give them the fields and "
                "the form of the data of the fit"
            ) from error

    def sample(self, draws: int, seed: int) -> Values:
        """Independent draws of all latent sites by running the program: {site: (draws, ...)}."""
        names = [site.name for site in self.sites] + [site.name for site in self.discrete]

        def once(_: Tensor) -> Values:
            trace = poutine.trace(self.model).get_trace(**self.data)
            return {name: value_of(trace, name) for name in names}

        return simulate(once, draws, seed)

    def simulate(self, draws: int, seed: int) -> Values:
        """Independent draws of all sites, the observed ones too: {site: (draws, *shape)}."""
        names = [site.name for site in (*self.sites, *self.discrete)] + self.observed

        def once(_: Tensor) -> Values:
            with poutine.trace() as tracer, Unobserve():
                self.model(**self.data)
            return {name: value_of(tracer.trace, name) for name in names}

        return simulate(once, draws, seed)

    def start(self, seed: int) -> Values:
        """The values of one prototype run, whose unconstrained values are uniform on (-2, 2)."""
        trace = self._prototype(seed)
        return {site.name: value_of(trace, site.name) for site in self.sites}

    def relations(self) -> dict[str, Any]:
        """Which sites depend on which, their laws and plates, as Pyro's inspection tells."""
        values = self.start(0)  # a flat prior cannot be drawn from

        def run() -> Any:
            with Substitute(values, constrained=True):
                return self.model(**self.data)

        return get_model_relations(run, include_deterministic=True)

    def describe(self, x: Tensor) -> str:
        """Which site makes the log density not finite at ``x``."""
        trace = self._trace(Substitute(self._split(x), constrained=False))
        for site in sample_sites(trace):
            try:
                log_prob = site["fn"].log_prob(site["value"])
            except ValueError as error:
                return f"site '{site['name']}': {_first_line(error)}"
            if not bool(torch.isfinite(log_prob).all()):
                kind = "NaN" if bool(torch.isnan(log_prob).any()) else "infinite"
                return f"the log density of site '{site['name']}' is {kind}"
        return "the gradient of the log density is not finite"

    # -- handlers --------------------------------------------------------------------------------

    def _split(self, x: Tensor) -> Values:
        return {
            site.name: x[site.offset : site.offset + site.size].reshape(site.unconstrained)
            for site in self.sites
        }

    def enumerated(self) -> Callable[..., Any]:
        """The program with its discrete sites marked for parallel enumeration."""
        return config_enumerate(self.model, default="parallel")

    def _trace(
        self, substitute: Substitute, data: Mapping[str, Any] | None = None
    ) -> poutine.Trace:
        model = poutine.block(self.model, hide_fn=is_deterministic)
        if self.discrete:
            model = config_enumerate(model, default="parallel")
            model = poutine.enum(model, first_available_dim=-1 - self.plate_nesting)
        with substitute:
            return poutine.trace(model).get_trace(**(self.data if data is None else data))

    def _log_joint(
        self,
        substitute: Substitute,
        tilts: tuple[Tensor, ...] = (),
        *,
        priors: bool = True,
        wide: bool = False,
    ) -> Tensor:
        trace = self._trace(substitute)
        if not priors:
            for latent in self.sites:
                for kind in ("log_prob", "unscaled_log_prob", "log_prob_sum"):
                    trace.nodes[latent.name][kind] = torch.zeros(())
        if wide and not self.discrete:
            trace.compute_log_prob()
            sums = [site["log_prob"].sum(dtype=torch.float64) for site in sample_sites(trace)]
            return functools.reduce(torch.add, sums)
        return self._marginal(trace, tilts)

    def _marginal(self, trace: poutine.Trace, tilts: tuple[Tensor, ...] = ()) -> Tensor:
        """The log probability of a trace, its discrete sites summed out."""
        if not self.discrete:
            return torch.as_tensor(trace.log_prob_sum())
        trace.compute_log_prob()
        for discrete, tilt in zip(self.discrete, tilts, strict=False):
            site: Any = trace.nodes[discrete.name]
            dim = site["infer"]["_enumerate_dim"]  # counted from the right, beyond all plates
            plates = tilt.movedim(-1, 0)  # (K, *batch)
            padding = [1] * (-dim - plates.dim())
            site["log_prob"] = site["log_prob"] + plates.reshape(
                plates.shape[0], *padding, *plates.shape[1:]
            )
        return TraceEinsumEvaluator(trace, True, self.plate_nesting).log_prob(trace)

    def example(self) -> Tensor:
        """An unconstrained point in no special place: (D,)."""
        device = next((v.device for v in self.data.values() if isinstance(v, Tensor)), None)
        return torch.linspace(-0.7, 0.9, self.dim, device=device)

    def _random_site(self, first: poutine.Trace) -> str | None:
        """The first site whose log density differs between two runs at the same values."""
        values = {str(s["name"]): s["value"] for s in sample_sites(first) if not s["is_observed"]}
        with Substitute(values, constrained=True):
            again = {site["name"]: site for site in sample_sites(self._prototype(1))}
        for site in sample_sites(first):
            if not _close(again[site["name"]]["log_prob_sum"], site["log_prob_sum"]):
                return site["name"]
        return None

    def _check_enumeration(self, first: poutine.Trace) -> None:
        """Compare the sum over discrete values with the program itself, at single values.

        With all other values ruled out, the sum must be the program's own log density. Elements of
        a site get different values, or a site that is used outside its plates would pass. Where
        Pyro's sum underflows, as the values are too improbable beside those ruled out, a point
        nearer to the origin of the unconstrained space is taken, where they differ less.
        """
        continuous = {site.name: value_of(first, site.name) for site in self.sites}
        held: Values = {}
        tilts = []
        for position, site in enumerate(self.discrete):
            size = len(site.support)
            index = ((torch.arange(site.batch.numel()) + position) % size).reshape(site.batch)
            index = index.to(site.support.device)
            held[site.name] = site.support[index]
            chosen = torch.nn.functional.one_hot(index, size)
            tilts.append((1 - chosen) * HELD)
        names = ", ".join(f"'{site.name}'" for site in self.discrete)
        remedy = (
            "use a discrete site only within its own plates, mark every other batch dimension with "
            ".to_event(1), and let no site's support depend on it; or marginalise it in the program"
        )
        summed = expected = torch.zeros(())
        for share in _NEARER:
            try:
                if share < 1:
                    continuous = self.constrain(share * self.unconstrain(continuous))
                summed = self._log_joint(Substitute(continuous, constrained=True), tuple(tilts))
                self.constrain(self.example())
            except Exception as error:
                raise ModelError(
                    f"the discrete sites {names} cannot be summed out: {_cause(error)}; {remedy}"
                ) from error
            with Substitute({**continuous, **held}, constrained=True):
                expected = torch.as_tensor(self._prototype(0).log_prob_sum())
            if bool(torch.isfinite(summed) | ~torch.isfinite(expected)):
                break
        if bool(torch.isfinite(expected)) and not _close(summed, expected):
            raise ModelError(
                f"the sum over the discrete sites {names} is not that of the program: {remedy}"
            )

    def _prototype(self, seed: int) -> poutine.Trace:
        """A run at random values, the first that is no mistake by the distributions' own checks."""
        first: ModelError | None = None
        for attempt in range(_PROTOTYPES):
            try:
                return self._run(seed + 2 * attempt)
            except ModelError as error:
                if not isinstance(error.__cause__, ValueError):
                    raise
                first = first or error
        assert first is not None
        raise first

    def _run(self, seed: int) -> poutine.Trace:
        generator = torch.Generator("cpu").manual_seed(seed)
        initialise = Initialise(generator)
        device = next((v.device for v in self.data.values() if isinstance(v, Tensor)), None)
        cuda = [device] if device is not None and device.type == "cuda" else []
        try:
            with torch.random.fork_rng(cuda), initialise, poutine.trace() as tracer:
                torch.manual_seed(seed)
                self.model(**self.data)
            trace = tracer.trace
            _check_observed(trace)
            trace.compute_log_prob(lambda name, site: not is_deterministic(site))
        except SuiteError:
            raise
        except Exception as error:
            place = (
                f"after site '{initialise.last}'" if initialise.last else "before its first site"
            )
            cause = _cause(error)
            remedy = (
                "keep its parameters in their domains, by .exp() or by priors on such values"
                if "to satisfy the constraint" in cause or "Encountered NaN" in cause
                else "run it once on the same data under pyro.poutine.trace to see the traceback"
            )
            raise ModelError(f"the program failed {place}: {cause}; {remedy}") from error
        return trace


def _check_arguments(model: Callable[..., Any], data: Mapping[str, Any]) -> None:
    call = model.forward if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(call)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**data)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "no arguments"
        has = ", ".join(data) or "nothing"
        raise DataError(
            f"the data do not fit the program: {error}; it takes {takes}, the data give {has}"
        ) from error


def _check_structure(first: Any, second: Any) -> None:
    def shape_of(site: Any) -> tuple[torch.Size, bool]:
        return site["fn"].batch_shape + site["fn"].event_shape, site["is_observed"]

    before = {site["name"]: shape_of(site) for site in sample_sites(first)}
    after = {site["name"]: shape_of(site) for site in sample_sites(second)}
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if changed:
        raise ModelError(
            f"the program's structure changes between runs: site '{changed[0]}' appears, vanishes "
            "or changes its shape with the values of other sites; engines need a fixed set of "
            "sites, so write the branch as a mixture or fit each branch as its own model"
        )


def _check_observed(trace: Any) -> None:
    for site in sample_sites(trace):
        value = site["value"]
        if site["is_observed"] and isinstance(value, Tensor) and bool(torch.isnan(value).any()):
            place = tuple(torch.isnan(value).nonzero()[0].tolist())
            at = f" at {', '.join(map(str, place))}" if place else ""
            raise DataError(
                f"{site['name']}: the observed value{at} is missing (NaN); drop the row or fill in "
                "the value"
            )


def _connected(start: set[str], links: list[set[str]]) -> set[str]:
    """All names that a chain of overlapping sets ties to those of ``start``."""
    found = set(start)
    while True:
        more = found.union(*(link for link in links if link & found))
        if more == found:
            return found
        found = more


def _rows(value: Any) -> int | None:
    return len(value) if isinstance(value, Tensor) and value.dim() else None


def _close(a: Any, b: Any) -> bool:
    """Whether two evaluations of one log density agree, up to rounding."""
    a, b = torch.as_tensor(a), torch.as_tensor(b)
    tolerance = 1e-8 if b.dtype == torch.float64 else 1e-3
    return torch.allclose(a.to(b), b, rtol=tolerance, atol=tolerance, equal_nan=True)


def _cause(error: BaseException) -> str:
    """The first lines of a chain of errors, the last first."""
    lines = [_first_line(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        if not isinstance(error, KeyError) and _first_line(error) not in lines:
            lines.append(_first_line(error))
    return " ".join(lines)


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
