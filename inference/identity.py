"""What makes the draws of a run what they are, by name, so that another run can be told."""

from __future__ import annotations

import hashlib
import math
import platform
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor, nn

from inference.engine import Engine, Problem


def identity(engine: Engine, problem: Problem) -> dict[str, Any]:
    """Settings, data, program, seed and versions, as what JSON can hold.

    The program is known by its sites, by its log density at two points, which is what a sampler
    sees, and by the weights it begins with.
    """
    from inference import __version__

    program = problem.program
    named: dict[str, Any] = {"engine": type(engine).__name__}
    for name, value in engine.settings().items():
        if name not in engine.extends:
            named[f"{type(engine).__name__}({name})"] = _plain(value)
    named |= {"seed": str(problem.seed), "dtype": str(problem.dtype), "device": str(problem.device)}
    for name, value in (problem.whole or problem.data).items():
        named[f"data[{name!r}]"] = _digest(value) if isinstance(value, Tensor) else _plain(value)
    for site in program.sites:
        named[f"site {site.name!r}"] = f"of shape {tuple(site.shape)}"
    for site in program.discrete:
        named[f"discrete site {site.name!r}"] = f"of shape {tuple(site.batch)}"
    if isinstance(problem.model, nn.Module):
        for name, value in problem.model.state_dict().items():
            if name.endswith("_extra_state") and value.dtype == torch.uint8:  # text
                named["settings of the model"] = bytes(value.tolist()).decode(errors="replace")
            else:
                named[f"weight {name!r}"] = _digest(value)
    named["deterministic sites"] = ", ".join(program.deterministic)
    for scale in (0.1, 0.7) if program.dim else ():
        x = torch.linspace(-scale, 0.9 * scale, program.dim, dtype=problem.dtype)
        with torch.no_grad():
            value = float(program.log_density(x.to(problem.device)))
        named[f"log density of the model at the fixed point {scale}"] = (
            value if math.isfinite(value) else str(value)
        )
    named |= {
        "version of ppl-suite": __version__,
        "version of torch": str(torch.__version__),
        "version of numpy": np.__version__,
        "version of numba": numba.__version__,
        "machine": platform.machine(),
    }
    return named


def _plain(value: Any) -> str:
    """A representation without an address in memory."""
    name = getattr(value, "__qualname__", None)
    return repr(value) if name is None else f"{value.__module__}.{name}"


def _digest(value: Tensor) -> str:
    array = np.ascontiguousarray(value.detach().cpu().numpy())
    kind = f"{tuple(array.shape)} {array.dtype}"
    return f"{kind} {hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
