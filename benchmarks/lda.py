"""Latent Dirichlet allocation beside other libraries: ``python -m benchmarks.lda --ap ap.dat``.

Seconds per sweep of collapsed Gibbs on the Reuters stories, beside the package ``lda``; seconds per
pass of mean field on the AP corpus of lda-c, beside scikit-learn, with the completion perplexity of
held-out documents by one definition; and the memory that fits take. One thread, in turns; seconds
are the processor's.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
import typer

from inference import CAVI, EM, Gibbs, fit, topics
from inference.fit import bind
from ppl_models import LatentDirichletAllocation, Noise
from ppl_models.corpora import held_out, read_lda_c, reuters
from ppl_models.counts import corpus

ALPHA, ETA, K = 0.1, 0.05, 50
BATCH = 128
ENGINES = {
    "gibbs": Gibbs(chains=2, warmup=5, draws=2),
    "cavi": CAVI(restarts=1, max_steps=5, draws=2),
    "stochastic": CAVI(restarts=1, max_steps=20, batch_size=BATCH, draws=2),
    "em": EM(restarts=1, max_steps=5, objective="likelihood"),
}


def sweeps(repeats: int = 3, number: int = 60) -> pd.DataFrame:
    """Seconds per sweep, one chain, K=20: medians; from the 100th sweep on for both."""
    import lda as package

    logging.getLogger("lda").setLevel(logging.ERROR)
    data = reuters()
    model = LatentDirichletAllocation(20, 0.1, 0.01)
    fields = model.prepare(data)
    noise = Noise.seeded(0, 1)
    state = model.initial(fields, 1, noise)
    (sweep,) = model.conditionals(fields).values()
    for step in range(100):
        state = sweep(state, noise.fold(step))
    counts = np.zeros((fields["documents"], fields["words"]), np.int64)
    counts[fields["doc"], fields["word"]] = fields["count"].long()

    def peer(n: int) -> float:
        begin = time.process_time()
        package.LDA(20, n_iter=n, alpha=0.1, eta=0.01, random_state=0, refresh=10**9).fit(counts)
        return time.process_time() - begin

    ours, theirs = [], []
    for turn in range(repeats):
        begin = time.process_time()
        for step in range(number):
            state = sweep(state, noise.fold(turn, step))
        ours.append((time.process_time() - begin) / number)
        theirs.append((peer(100 + number) - peer(100)) / number)
    seconds = {"suite": np.median(ours), "lda": np.median(theirs)}
    return pd.DataFrame({"s_per_sweep": seconds}).assign(
        times=lambda t: t.s_per_sweep["lda"] / t.s_per_sweep
    )


def anchor(chains: int = 4) -> pd.DataFrame:
    """log p(w, z) after 1,500 sweeps of the Reuters stories, a column for each chain.

    From the package's own start, where token i has the topic i mod K, and from random topics.
    """
    model = LatentDirichletAllocation(20, 0.1, 0.01)
    fields = model.prepare(reuters())
    (sweep,) = model.conditionals(fields).values()
    rows = {}
    for start in ("i mod K", "random"):
        noise = Noise.seeded(0, chains)
        state = model.initial(fields, chains, noise.fold(0))
        if start == "i mod K":
            word = fields["word"].repeat_interleave(fields["count"].long())
            state["z"][:] = torch.arange(len(word)) % 20
            own = torch.nn.functional.one_hot(state["z"][0].long()).int()
            state["by_word"][:] = torch.zeros_like(state["by_word"][0]).index_add_(0, word, own)
        for step in range(1500):
            state = sweep(state, noise.fold(1, step))
        rows[start] = model.complete(fields, state, noise.fold(2))["log_joint"].round().int()
    return pd.DataFrame.from_dict({k: v.tolist() for k, v in rows.items()}, orient="index")


def passes(path: Path, number: int, seeds: int) -> pd.DataFrame:
    """Seconds per pass over nine tenths of AP, and perplexity of the rest after ``number``."""
    from sklearn.decomposition import LatentDirichletAllocation as Peer

    train, held = held_out(read_lda_c(path))
    model = LatentDirichletAllocation(K, ALPHA, ETA)
    problem = bind(model, train)
    steps = number * -(-problem.data["documents"] // BATCH)
    rows: list[dict[str, Any]] = []

    def record(name: str, begin: float, phi: Any) -> None:
        seconds = (time.process_time() - begin) / number
        row = {"engine": name, "s_per_pass": seconds}
        rows.append(row | {"perplexity": topics.perplexity(phi, ALPHA, held)})

    for seed in range(seeds):
        for method in ("batch", "online"):
            noise = Noise.seeded(seed, 1)
            factors = model.initial_factors(problem.data, 1, noise.fold(0))
            begin = time.process_time()
            if method == "batch":
                factors, *_ = CAVI(max_steps=number, tol=1e-12)._rounds(problem, factors)
            else:
                engine = CAVI(max_steps=steps, batch_size=BATCH, delay=10.0)
                factors, *_ = engine._steps(problem, factors, noise.fold(1))
            phi = factors["weights"][0].T
            record(f"suite, {method}", begin, phi / phi.sum(-1, keepdim=True))
            begin = time.process_time()
            peer = Peer(
                K, doc_topic_prior=ALPHA, topic_word_prior=ETA, learning_method=method,
                max_iter=number, batch_size=BATCH, random_state=seed,
            ).fit(train["counts"])  # fmt: skip
            phi = peer.components_
            record(f"scikit-learn, {method}", begin, phi / phi.sum(1, keepdims=True))
    return pd.DataFrame(rows).groupby("engine").mean()


def memory(path: Path) -> pd.DataFrame:
    """Peak memory of a fit over that of its imports, in MB, at half of AP and at all of it."""
    rows = []
    for name in ENGINES:
        for share in (2, 1):
            command = [sys.executable, "-m", "benchmarks.lda", "--peak", f"{name},{share}"]
            answer = subprocess.run([*command, "--ap", str(path)], capture_output=True, check=True)
            rows.append({"engine": name} | json.loads(answer.stdout.splitlines()[-1]))
    return pd.DataFrame(rows)


def peak(path: Path, name: str, share: int) -> dict[str, float]:
    data = read_lda_c(path)
    keep = data["doc"] < (data["doc"].max() + 1) // share
    fields = corpus({k: v[keep] for k, v in data.items()} | {"words": data["word"].max() + 1})
    model, engine = LatentDirichletAllocation(K, ALPHA, ETA), ENGINES[name]
    fit(model, [[1, 2], [2, 1]], engine if name != "stochastic" else ENGINES["cavi"])  # compiles
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, at what is used now
    before = _status("VmRSS")
    fit(model, fields, engine)
    return {
        "entries": len(fields["doc"]),
        "tokens": int(fields["count"].sum()),
        "draw_mb": 8e-6 * K * (fields["words"] + fields["documents"]),
        "peak_mb": (_status("VmHWM") - before) / 1024,
    }


def _status(name: str) -> float:
    """A figure of this process in kB, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name)))


def main(
    ap: Annotated[Path, typer.Option(help="ap.dat of lda-c")],
    number: Annotated[int, typer.Option("--passes", min=1)] = 20,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    peak_of: Annotated[str | None, typer.Option("--peak", hidden=True)] = None,
) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if peak_of is not None:
        name, share = peak_of.split(",")
        print(json.dumps(peak(ap, name, int(share))))
        return
    print(sweeps().to_string(float_format="{:.5f}".format), "\n")
    print("log p(w, z) after 1,500 sweeps, by start and chain")
    print(anchor().to_string(), "\n")
    print(passes(ap, number, seeds).to_string(float_format="{:.3f}".format), "\n")
    print(memory(ap).to_string(index=False, float_format="{:.1f}".format))


if __name__ == "__main__":
    typer.run(main)
