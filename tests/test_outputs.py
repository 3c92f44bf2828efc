"""Maps of draws: what of the program they run, and in which pieces."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.poutine.runtime import _PYRO_STACK

from inference import outputs
from inference.outputs import Outputs
from inference.program import Program

ROWS = 1000


class Line:
    """Counts how often the likelihood is reached."""

    def __init__(self):
        self.reached = 0

    def __call__(self, x, y, matrix):
        try:
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            mean = slope * x
            scale = pyro.sample("scale", dist.HalfNormal(1.0 + slope.abs()))
        except Exception:  # a program may catch what it likes
            scale = mean = torch.ones(())
        with pyro.plate("rows", len(x)):
            self.reached += 1
            pyro.sample("y", dist.Normal(mean, scale), obs=y)


@pytest.fixture
def program():
    data = {"x": torch.arange(float(ROWS)), "y": torch.ones(ROWS), "matrix": torch.ones(ROWS, 100)}
    return Program(Line(), data)


def test_values_are_had_without_the_likelihood(program):
    made, line = Outputs(program, torch.float32, torch.device("cpu")), program.model.__wrapped__
    x = torch.randn(2, 50, 2)
    before = line.reached
    values = made.constrain(x)
    torch.testing.assert_close(values["slope"], x[..., 0])
    torch.testing.assert_close(values["scale"], x[..., 1].exp())
    torch.testing.assert_close(made.unconstrain(values), x)
    torch.testing.assert_close(made.log_jacobian(x), x[..., 1])
    assert line.reached == before
    assert not _PYRO_STACK
    assert bool(torch.isfinite(made.log_density(x)).all())
    assert line.reached > before


def test_pieces_are_as_large_as_the_largest_tensor_allows(program, monkeypatch):
    monkeypatch.setattr(outputs, "_CHUNK", 10 * ROWS)
    made = Outputs(program, torch.float32, torch.device("cpu"))
    rows = []
    own = made._rowwise
    monkeypatch.setattr(made, "_rowwise", lambda f, part: rows.append(len(part)) or own(f, part))
    x = torch.randn(100, 2)
    made.log_density(x)  # data alone are no reason for smaller pieces
    assert rows == [10] * 10
    rows.clear()
    made.constrain(x)  # makes as large a tensor on the way
    assert rows == [10] * 10
