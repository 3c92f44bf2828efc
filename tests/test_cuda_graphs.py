"""Blocks of steps by one captured step: the same as step by step.

Without a GPU the capture is the step itself, so that what is tested is what it reads and writes.
"""

import pytest
import torch

import inference
from inference import HMC, MALA, MH, NUTS, Target, fit, nuts_cpu, sampling, warmup
from inference.chains import Tuning
from ppl_models import Noise
from tests.programs import CONTINUOUS

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

KERNELS = {
    "NUTS": NUTS(max_depth=4),
    "HMC": HMC(steps=4),
    "MALA": MALA(),
    "MH": MH(),
}


def density(x):
    return -0.5 * (x * torch.tensor([1.0, 4.0, 0.3], dtype=x.dtype) * x).sum() - 0.1 * x[0] ** 4


def as_is(once, device):
    for _ in range(2):  # as before a capture
        once()
    return once


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("adapting", [True, False])
def test_a_block_is_that_of_single_steps(name, adapting, monkeypatch):
    monkeypatch.setattr(nuts_cpu, "usable", lambda device: False)
    kernel, noise = KERNELS[name], Noise.seeded(2, 5)
    target = Target(density, 3, tier="traced")
    step = torch.full((5,), 0.4, dtype=torch.float64)
    tuning = Tuning(step, torch.ones(3, dtype=torch.float64))
    numbers = kernel.numbers(target, noise, 0, 1)[0]
    start = kernel.init(target, noise.fold(7).normal(3), tuning, numbers)
    averaging = warmup.averaging(step) if adapting else None

    def blocks():
        first = kernel.block(target, start, tuning, noise, 70, 20, averaging)
        # again, from where that ended: nothing is left of the first
        return first, kernel.block(target, first.state, tuning, noise, 90, 9, first.averaging)

    expected = blocks()
    captured = []

    def counted(once, device):
        captured.append(once)
        return as_is(once, device)

    monkeypatch.setattr(sampling, "capture_for", lambda device: counted)
    found = blocks()
    assert len(captured) == 1
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_step_that_waits_for_values_is_taken_one_by_one(monkeypatch):
    def fails(once, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    data = CONTINUOUS["line"]
    engine = HMC(chains=2, warmup=20, draws=10, steps=3, tier="traced")
    expected = fit(data.program, data.data, engine)
    monkeypatch.setattr(sampling, "capture_for", lambda device: fails)
    found = fit(data.program, data.data, engine)
    torch.testing.assert_close(found.posterior.draws, expected.posterior.draws, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["HMC", "ChEES", "MAMS"])
def test_whole_fits_are_the_same(name, monkeypatch):
    """What warm-up learns between blocks reaches the graph."""
    data = CONTINUOUS["line"]
    engine = getattr(inference, name)(chains=4, warmup=40, draws=20, tier="traced")
    expected = fit(data.program, data.data, engine)
    monkeypatch.setattr(sampling, "capture_for", lambda device: as_is)
    found = fit(data.program, data.data, engine)
    torch.testing.assert_close(found.posterior.draws, expected.posterior.draws, rtol=0, atol=0)
