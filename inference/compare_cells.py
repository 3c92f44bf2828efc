"""What a comparison is asked for: models by engines by seeds, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from inference import arviz_bridge
from inference.engine import Engine
from inference.gibbs import Gibbs
from inference.hmc import HMC
from inference.references import Reference, reference_of
from inference.sampling import Sampler
from inference.smc import SMC
from inference.thermodynamic import Thermodynamic
from inference.transported import Transported
from ppl_models.errors import EngineError


class Cell(NamedTuple):
    """One fit that is asked for, and the name it goes by."""

    model: str
    engine: str
    seed: int
    name: str

    @property
    def columns(self) -> dict[str, Any]:
        """What identifies the fit in a table."""
        return {"model": self.model, "engine": self.engine, "seed": self.seed}


def cost(engine: Engine) -> tuple[int, int]:
    """What fits are ordered by: engines with chains last, among them by declared evaluations.

    These are points at which the density is evaluated, at most; what one costs is not known.
    A tree of NUTS counts as 16, tempering as 10 stages.

    >>> from inference import EM, MH, NUTS
    >>> from inference.compare_cells import cost
    >>> cost(EM()) < cost(MH(warmup=100, draws=100, thin=1)) < cost(NUTS(warmup=100, draws=100))
    True
    """
    match engine:
        case Sampler():
            chains = engine.chains if isinstance(engine.chains, int) else 4  # or "auto"
            return 1, chains * engine.evaluations()
        case Gibbs():
            return 1, engine.chains * (engine.warmup + engine.draws * engine.thin)
        case SMC():
            return 1, engine.runs * engine.particles * engine.moves * _steps(engine.kernel) * 10
        case Transported():
            return cost(engine.kernel)
        case Thermodynamic():
            transitions = engine.temperatures * engine.chains * (engine.warmup + engine.draws)
            return 1, transitions * _steps(engine.kernel)
        case _:
            return 0, 0


def _steps(kernel: Sampler) -> int:
    return kernel.steps if isinstance(kernel, HMC) else 1


def models_of(models: Any, data: Any) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Model and data by name, of a model or of models by name, each alone or with its data."""
    if not isinstance(models, Mapping):
        name = getattr(models, "__name__", type(models).__name__)
        return {name: (models, data)}
    if not models:
        raise EngineError("models is empty; give a model, or models by name")
    found = {}
    for name, given in models.items():
        pair = isinstance(given, tuple)
        if pair and len(given) != 2:
            raise EngineError(f"models[{name!r}] has {len(given)} parts; give (model, data)")
        found[str(name)] = given if pair else (given, data)
    return found


def engines_of(engines: Mapping[str, Engine] | Sequence[Engine]) -> dict[str, Engine]:
    """Engines by name; those of a list are named by their classes and told apart by numbers."""
    if isinstance(engines, Mapping):
        named = {str(name): engine for name, engine in engines.items()}
    else:
        named = {}
        for engine in engines:
            base = type(engine).__name__.lower()
            name, again = base, 2
            while name in named:
                name, again = f"{base}_{again}", again + 1
            named[name] = engine
    if not named:
        raise EngineError("engines is empty; give engines such as [NUTS(), MH()]")
    return named


def references_of(reference: Any, models: Any, names: Mapping[str, Any]) -> dict[str, Reference]:
    """References by model; where models have names, they must be given by these."""
    if reference is None:
        return {}
    if not isinstance(models, Mapping):
        return {next(iter(names)): reference_of(reference)}
    by_model = isinstance(reference, Mapping) and not arviz_bridge.is_data(reference)
    unknown = [name for name in reference if name not in names] if by_model else []
    if not by_model or unknown:
        what = f"'{unknown[0]}'" if unknown else f"a {type(reference).__name__}"
        raise EngineError(
            f"reference is {what}, but models are given by name; give references by the names "
            f"{', '.join(names)}, such as dict.fromkeys(models, reference)"
        )
    return {str(name): reference_of(given) for name, given in reference.items()}


def seeds_of(seeds: Any) -> list[int]:
    """The seeds, each once."""
    if isinstance(seeds, int | np.integer) or not seeds:
        raise EngineError(f"seeds={seeds!r}: give seeds such as (0,) or range(5)")
    return list(dict.fromkeys(int(seed) for seed in seeds))


def cells_of(models: list[str], engines: list[str], seeds: list[int]) -> tuple[Cell, ...]:
    """All fits, named by what tells them apart."""
    cells = []
    for model, engine, seed in product(models, engines, seeds):
        parts = [model] if len(models) > 1 else []
        parts += [engine]
        parts += [f"seed {seed}"] if len(seeds) > 1 else []
        cells.append(Cell(model, engine, seed, ", ".join(parts)))
    return tuple(cells)
