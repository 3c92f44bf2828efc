"""MNIST beside Burda, Grosse & Salakhutdinov (2016): test log-likelihood against training time.

    python -m benchmarks.mnist DIR --out k1
    python -m benchmarks.mnist DIR --out k50 --k 50 --start k1/weights-360000.npz --rate 1e-3

Their network with one stochastic layer: 50 latent units, two layers of 200 tanh units each way,
pixels binarised anew at every step; and their schedule, 3^i passes at a learning rate falling as
10^(-i/7). The same command goes on where it was stopped, and with more ``--steps`` further.

After every ``--every`` steps a line tells steps, passes, seconds of training, and the mean test
log-likelihood by importance sampling: the bound of 50 draws for all 10,000 images, plus what 5,000
draws add to it for the first ``--images``. ``--whole`` gives the 5,000 draws to all images, once,
after the last step. The published figures are -86.76 (k=1) and -84.78 (k=50); -84.88 where training
by k=50 starts from weights of k=1 (their table 2).
"""

from __future__ import annotations

import argparse
import resource
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from case_studies.images import load
from inference import ELBO, SVI, ImportanceWeighted, InferenceWarning, fit
from inference.row_evaluation import evaluate, log_likelihood
from inference.storage import whole
from ppl_models import VAE
from ppl_models.networks import MLPDecoder, MLPEncoder

BATCH, ROWS = 100, 60_000
SHAPE, LATENT, HIDDEN = (28, 28), 50, (200, 200)


def network(start: Path | None) -> VAE:
    """Their autoencoder, with these weights, or those of a seed."""
    torch.manual_seed(0)
    networks = {
        "encoder": MLPEncoder(SHAPE, LATENT, HIDDEN, activation=nn.Tanh),
        "decoder": MLPDecoder(SHAPE, LATENT, HIDDEN, activation=nn.Tanh),
    }
    model = VAE(LATENT, shape=SHAPE, binarise="dynamic", **networks)
    if start is not None:
        with np.load(start, allow_pickle=False) as saved:
            model.load_state_dict({name: torch.from_numpy(saved[name]) for name in saved})
    return model


def factor(step: int) -> float:
    """Of the learning rate: stage i has 3^i passes."""
    passes, stage = step * BATCH // ROWS, 0
    while passes >= (3 ** (stage + 1) - 1) // 2:
        stage += 1
    return 10 ** (-stage / 7)


def schedule(optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The rate of each step."""
    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def estimate(model: VAE, test: np.ndarray, images: int) -> tuple[float, float, float, int]:
    """Mean log-likelihood and its error by the images not drawn; ELBO; active units."""
    found = evaluate(model, test, samples=50)
    gain = log_likelihood(model, test[:images], samples=5000) - found.bound[:images]
    error = float(gain.std()) / images**0.5
    total = float(found.bound.mean() + gain.mean())
    return total, error, float(found.elbo.mean()), found.active or 0


def measured_whole(model: VAE, test: np.ndarray) -> Tensor:
    """5,000 draws for every image, with seconds and the memory it took."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    found = log_likelihood(model, test, samples=5000)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{len(test)} images, 5,000 draws each: {float(found.mean()):.3f} "
        f"(error over images {float(found.std()) / len(test) ** 0.5:.3f}), "
        f"{time.perf_counter() - begin:.0f} s, peak memory {peak / 1024:.0f} MB "
        f"({before / 1024:.0f} MB before)",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the IDX or npz files")
    parser.add_argument("--out", type=Path, required=True, help="folder of run, curve and weights")
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--steps", type=int, default=360_000, help="in all; 600 are a pass")
    parser.add_argument("--every", type=int, default=30_000, help="steps between lines")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--images", type=int, default=200, help="test images given 5,000 draws")
    parser.add_argument("--whole", action="store_true", help="at the end 5,000 draws for all")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", InferenceWarning)
    data = load("mnist", chosen.data)
    chosen.out.mkdir(parents=True, exist_ok=True)
    run, file = chosen.out / "run", chosen.out / "curve.csv"
    lines = pd.read_csv(file).to_dict("records") if file.is_file() else []
    done = int(lines[-1]["steps"]) if lines else 0
    model = None
    while model is None or done < chosen.steps:
        steps = min(done + chosen.every, chosen.steps)
        engine = SVI(
            objective=ImportanceWeighted(chosen.k) if chosen.k > 1 else ELBO(),
            batch_size=BATCH,
            steps=steps,
            learning_rate=chosen.rate,
            schedule=schedule,
            average=0.999,
            precision=chosen.precision,
            plateau=False,
            rows=2,
            draws=4,
        )
        there = (run / "run.json").is_file()
        found = fit(
            network(chosen.start), data.train, engine, **{"resume" if there else "store": run}
        )
        model = found.model
        assert isinstance(model, VAE)
        if steps == done:  # nothing was left to train
            break
        done, seconds = steps, found.posterior.attributes["bound_seconds"][-1]
        likelihood, error, elbo, active = estimate(model, data.test, chosen.images)
        line = {
            "steps": steps,
            "passes": steps * BATCH / ROWS,
            "seconds": round(seconds, 1),
            "test_log_likelihood": round(likelihood, 3),
            "error": round(error, 3),
            "test_elbo": round(elbo, 3),
            "active_units": active,
        }
        print(line, flush=True)
        lines.append(line)
        with whole(file) as path:
            pd.DataFrame(lines).to_csv(path, index=False)
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        with whole(chosen.out / f"weights-{steps}.npz") as path:
            np.savez(path, **weights)
    if chosen.whole:
        measured_whole(model, data.test)


if __name__ == "__main__":
    main()
