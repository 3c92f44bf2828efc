"""Training steps beside Pyro's SVI and a plain PyTorch loop, in one run.

    python -m benchmarks.training [--repeats 5] [--steps 300] [--threads 2]

A variational autoencoder, 784-400-20 in single precision, minibatches of 128 of random images,
Adam. Pyro's is its own example: ``Trace_ELBO`` and its Adam over ``pyro.module``. The plain loop
has the divergence in closed form, ``zero_grad``, ``backward`` and ``step``. Ours is ``fit`` with
``SVI``, whole, less the time until its first step (tracing or compiling, told apart). Contestants
take turns; printed are medians over the repeats, and of ratios within a round. The overhead is the
time of a step of a network so small (4-2-1, batches of 2) that nothing else is left.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import infer
from torch import Tensor, nn

from benchmarks import steps as contestants
from inference import SVI, InferenceWarning
from ppl_models import HasRows


class Autoencoder(HasRows):
    """The networks of all contestants, and ours as a model."""

    def __init__(self, pixels: int, hidden: int, latent: int) -> None:
        super().__init__()
        self.latent = latent
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, pixels)
        )

    def forward(self, x: Tensor) -> None:  # type: ignore[override]
        with pyro.plate("rows", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:  # type: ignore[override]
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def ours(sizes: tuple[int, int, int], x: Tensor, batch: int, steps: int, tier: Any) -> float:
    """Seconds per step."""
    torch.manual_seed(0)
    engine = SVI(batch_size=batch, steps=steps, plateau=False, rows=1, draws=1, tier=tier)
    return contestants.ours(Autoencoder(*sizes), {"x": x}, engine)


def pyros(sizes: tuple[int, int, int], x: Tensor, batch: int, steps: int) -> float:
    """Pyro's own loop."""
    torch.manual_seed(0)
    model = Autoencoder(*sizes)

    def program(x: Tensor) -> None:
        pyro.module("decoder", model.decoder)
        model.forward(x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", model.encoder)
        model.guide(x)

    pyro.clear_param_store()
    svi = infer.SVI(program, guide, pyro.optim.Adam({"lr": 1e-3}), loss=infer.Trace_ELBO())
    return contestants.looped(lambda rows: svi.step(x[rows]), len(x), batch, steps)


def plain(sizes: tuple[int, int, int], x: Tensor, batch: int, steps: int) -> float:
    """A loop as anyone writes it in PyTorch."""
    torch.manual_seed(0)
    model = Autoencoder(*sizes)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step(rows: Tensor) -> float:
        images = x[rows]
        loc, log_scale = model.encoder(images).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        logits = model.decoder(z)
        fit_loss = nn.functional.binary_cross_entropy_with_logits(logits, images, reduction="sum")
        divergence = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        loss = (fit_loss + divergence) / len(images)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return loss.item()

    return contestants.looped(step, len(x), batch, steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore", InferenceWarning)
    for name, sizes, batch, rows in (
        ("784-400-20, batches of 128", (784, 400, 20), 128, 12_800),
        ("4-2-1, batches of 2 (overhead)", (4, 2, 1), 2, 128_000),
    ):
        x = torch.bernoulli(torch.rand(rows, sizes[0]))
        runs: dict[str, Callable[[], float]] = {
            "pyro": lambda s=sizes, b=batch, x=x: pyros(s, x, b, chosen.steps),
            "plain": lambda s=sizes, b=batch, x=x: plain(s, x, b, chosen.steps),
            "traced": lambda s=sizes, b=batch, x=x: ours(s, x, b, chosen.steps, "traced"),
            "compiled": lambda s=sizes, b=batch, x=x: ours(s, x, b, chosen.steps, "compiled"),
        }
        contestants.contest(
            name, runs, peers=("pyro", "plain"), repeats=chosen.repeats, batch=batch
        )


if __name__ == "__main__":
    main()
