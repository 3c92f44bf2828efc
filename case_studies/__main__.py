"""``python -m case_studies`` lists the studies."""

from __future__ import annotations

import importlib
import pkgutil

import case_studies


def studies() -> dict[str, str]:
    """The studies by module name, with the first line of their docstrings."""
    found = {}
    for module in pkgutil.iter_modules(case_studies.__path__):
        if not module.name.startswith("_") and module.name != "command":
            text = importlib.import_module(f"case_studies.{module.name}").__doc__ or ""
            found[module.name] = text.strip().splitlines()[0]
    return found


if __name__ == "__main__":
    for name, text in studies().items():
        print(f"python -m case_studies.{name:12} {text}")
