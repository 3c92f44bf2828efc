"""States of a run as one file of plain arrays, that appears whole; nothing in it is code.

A state is a nest of NamedTuples, dictionaries, tensors, arrays and numbers. The file is in the
format of safetensors: an array for each leaf, and in its header a skeleton in JSON that says where
each belongs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from inference.storage import whole
from ppl_models.errors import EngineError

_SKELETON = "skeleton"


class Saved(NamedTuple):
    """A state as read: its parts are rebuilt by ``part``."""

    skeleton: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def part(self, name: str, like: Any, device: torch.device) -> Any:
        """The part of that name, with the types of ``like`` and the values of the file."""
        return _decode(self.skeleton[name], like, self.arrays, device)

    def __contains__(self, name: object) -> bool:
        return name in self.skeleton


def write(path: str | os.PathLike[str], parts: dict[str, Any]) -> None:
    """Write a state, given by its parts. Raises ``EngineError`` where a leaf is no array."""
    arrays: dict[str, np.ndarray] = {}
    skeleton = {name: _encode(part, arrays) for name, part in parts.items()}
    content = save(arrays, metadata={_SKELETON: json.dumps(skeleton)})
    with whole(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read(path: str | os.PathLike[str]) -> Saved | None:
    """The state in a file; None where there is none. Raises ``EngineError`` if it is broken."""
    if not Path(path).is_file():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Saved(json.loads(file.metadata()[_SKELETON]), arrays)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise EngineError(
            f"{path}: no whole checkpoint of this library ({error}); begin anew by store="
        ) from error


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if value is None or isinstance(value, int | float | str):
        return {"value": value}
    if isinstance(value, dict):
        return {"fields": {name: _encode(item, arrays) for name, item in value.items()}}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _encode(value._asdict(), arrays)  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(value, Tensor | np.ndarray):
        name = f"a{len(arrays)}"
        tensor = isinstance(value, Tensor)
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        arrays[name] = array if array.flags.c_contiguous else array.copy(order="C")
        return {"tensor" if tensor else "array": name}
    raise EngineError(
        f"a run whose state holds a {type(value).__name__} cannot be stored; make its state a "
        "NamedTuple of tensors"
    )


def _decode(
    skeleton: dict[str, Any], like: Any, arrays: dict[str, np.ndarray], device: torch.device
) -> Any:
    if "value" in skeleton:
        return skeleton["value"]
    if "tensor" in skeleton:
        return torch.from_numpy(arrays[skeleton["tensor"]].copy()).to(device)
    if "array" in skeleton:
        return arrays[skeleton["array"]].copy()
    fields = skeleton["fields"]
    if hasattr(like, "_fields"):  # a NamedTuple, or its class
        parts = {
            name: _decode(part, getattr(like, name), arrays, device)
            for name, part in fields.items()
        }
        return (like if isinstance(like, type) else type(like))(**parts)
    known = like if isinstance(like, dict) else {}
    return {name: _decode(part, known.get(name), arrays, device) for name, part in fields.items()}
