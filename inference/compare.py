"""Models by engines by seeds, in one table."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from inference.compare_cells import (
    Cell,
    cells_of,
    cost,
    engines_of,
    models_of,
    references_of,
    seeds_of,
)
from inference.compare_table import COLUMNS, FIT_COLUMNS, cell, parameter_rows
from inference.comparison import Comparison
from inference.engine import Engine
from inference.fit import Fit, InferenceWarning, fit
from inference.references import Reference
from inference.stopping import Until
from ppl_models.errors import EngineError, SuiteError

__all__ = ["COLUMNS", "FIT_COLUMNS", "Comparison", "cell", "compare"]

INTERRUPTED = "interrupted"
"""The failure of a fit that Ctrl-C has left out."""


def compare(
    models: Callable[..., Any] | Mapping[str, Any],
    data: Any = None,
    engines: Mapping[str, Engine] | Sequence[Engine] = (),
    *,
    reference: Any = None,
    seeds: Sequence[int] = (0,),
    budget: float | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Fit each model by each engine with each seed.

    Cheap fits run first: engines without chains, then chains by the evaluations of the density
    that they declare (``cost``). A fit that fails is a row that says why. Ctrl-C keeps what is
    done, the draws of the chains that it stops among it, and leaves out the rest.

    Args:
        models: a model as for ``fit``, or several by name. Where one has data of its own, give
            the pair (model, data).
        data, device, dtype, progress: as for ``fit``.
        engines: by name, or in a list, named by their classes in small letters.
        reference: what errors are measured against: means and sds by parameter, as a DataFrame
            with these columns or a mapping to pairs; or draws, as a ``Fit``, an ArviZ object or a
            mapping from sites to arrays (chain, draw, *event). With several models a mapping
            from their names to such; a model may be missing.
        seeds: such as ``range(5)``.
        budget: seconds of wall time for each fit, ``Until(seconds=budget)``; what was stopped by
            it says so in its row.

    Returns:
        A ``Comparison``, its rows in the order in which models, engines and seeds were given.

    Raises:
        EngineError: before any work, for settings that cannot be; and where every fit has failed
            for the same reason, which lies in the data or the program.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from inference import MH, SVI, compare
        >>> def coin(): pyro.sample("p", dist.Beta(3.0, 2.0))
        >>> engines = [MH(draws=200), SVI(guide="laplace", draws=200)]
        >>> both = compare(coin, None, engines, reference={"p": (0.6, 0.2)}, seeds=range(2))
        >>> list(both.fits)
        ['mh, seed 0', 'mh, seed 1', 'svi, seed 0', 'svi, seed 1']
    """
    programs = models_of(models, data)
    named = engines_of(engines)
    truths = references_of(reference, models, programs)
    cells = cells_of(list(programs), list(named), seeds_of(seeds))
    until = None if budget is None else Until(seconds=budget)
    fits: dict[str, Fit] = {}
    failures: dict[str, str] = {}
    for current in sorted(cells, key=lambda c: cost(named[c.engine])):
        model, fields = programs[current.model]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InferenceWarning)  # they are in the table
                result = fit(
                    model, fields, named[current.engine],
                    seed=current.seed, device=device, dtype=dtype, progress=progress, until=until,
                )  # fmt: skip
        except SuiteError as error:
            failures[current.name] = str(error)
        except KeyboardInterrupt:
            if not fits:
                raise
            break
        except Exception as error:  # a broken engine must not lose the others' fits
            last = traceback.extract_tb(error.__traceback__)[-1]
            failures[current.name] = f"{type(error).__name__} in {last.name}: {error}"
        else:
            fits[current.name] = result
            if any(finding.name == "interrupted" for finding in result.findings):
                break
    left = [c.name for c in cells if c.name not in fits and c.name not in failures]
    failures |= dict.fromkeys(left, INTERRUPTED)
    if not fits and failures:
        reasons = set(failures.values())
        if len(reasons) == 1:  # the data or the program are at fault, not the engines
            raise EngineError(reasons.pop())
    return _comparison(cells, fits, failures, truths)


def _comparison(
    cells: tuple[Cell, ...],
    fits: dict[str, Fit],
    failures: dict[str, str],
    references: dict[str, Reference],
) -> Comparison:
    rows = []
    for current in cells:
        if current.name in fits:
            truth = references.get(current.model)
            rows += parameter_rows(current, fits[current.name], truth)
        else:
            status = f"failed: {failures[current.name]}"
            rows.append({**current.columns, "status": status})
    ordered = {c.name: fits[c.name] for c in cells if c.name in fits}
    failed = {c.name: failures[c.name] for c in cells if c.name in failures}
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return Comparison(table, ordered, failed, references, cells)
