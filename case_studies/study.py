"""What a case study offers to ``ppl-suite compare``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference import Engine


@dataclass(frozen=True)
class Study:
    """Models, data and engines, as for ``inference.compare``.

    A study's module has a function ``study()``, which gives one with the study's defaults.

    Args:
        models: a model, or several by name.
        data: of the models.
        engines: by name, each a function that makes one.
        usual: the engines that run unless others are named.
        reference: a function that computes what errors are measured against.
        shown: the parameters to print; by default all.
    """

    models: Any
    data: Any
    engines: Mapping[str, Callable[[], Engine]]
    usual: str
    reference: Callable[[], Any] | None = None
    shown: Sequence[str] | None = None
