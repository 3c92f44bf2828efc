"""Topics of news: latent Dirichlet allocation of 395 Reuters stories, by several engines.

Every tenth story is held out, and all engines are judged by the same completion perplexity. EM's
maximum likelihood gives words that a topic has not seen no probability, which costs it dearly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from matplotlib.figure import Figure
from torch import Tensor

from case_studies.command import FAILED, chosen, plain_errors, writable
from case_studies.study import Study
from inference import CAVI, EM, MH, NUTS, SVI, Comparison, Fit, Gibbs, compare, topics
from inference.storage import whole
from ppl_models import LatentDirichletAllocation
from ppl_models.corpora import held_out, read_corpus, reuters

ENGINES = "gibbs,cavi,stochastic,em"


def study(
    train: Any = None,
    number: int = 20,
    *,
    alpha: float = 0.1,
    eta: float = 0.01,
    sweeps: int = 1500,
) -> Study:
    """So many topics of the stories that are not held out, with the engines."""
    engines = {
        "gibbs": lambda: Gibbs(chains=2, warmup=sweeps // 50 - 5, draws=5, thin=50),
        "cavi": lambda: CAVI(restarts=2, max_steps=300, tol=1e-6, draws=10),
        "stochastic": lambda: CAVI(restarts=2, max_steps=300, draws=10, batch_size=64),
        "svi": lambda: SVI(steps=2000, batch_size=2000, draws=10),
        "nuts": NUTS,
        "mh": MH,
        "em": lambda: EM(restarts=2, max_steps=200, objective="likelihood"),
    }
    stories = held_out(reuters())[0] if train is None else train
    return Study(LatentDirichletAllocation(number, alpha, eta), stories, engines, ENGINES)


def last(result: Fit, site: str) -> Tensor:
    """One draw: topics are not averaged over chains, which may have found others."""
    draws = result.posterior.draws[site]
    return draws if result.posterior.kind == "point" else draws[0, -1]


def judged(comparison: Comparison, train: Any, held: Any, alpha: float) -> pd.DataFrame:
    """Perplexity of held-out documents, coherence (NPMI) of topics and seconds of each engine."""
    rows = {
        name: {
            "perplexity": topics.perplexity(result.posterior.draws["topics"], alpha, held),
            "coherence": topics.coherence(last(result, "topics"), train).mean(),
            "seconds": result.seconds["total"],
        }
        for name, result in comparison.fits.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("engine")


def picture(name: str, result: Fit) -> Figure:
    """Every topic's top words, and its mean proportion of a document."""
    share = last(result, "proportions").mean(0)
    order = share.argsort()
    vocabulary = result.data["vocabulary"] or [str(w) for w in range(result.data["words"])]
    labels = [" ".join(row) for row in topics.top_words(last(result, "topics")[order], vocabulary)]
    figure = Figure(figsize=(10, 0.3 * len(labels) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(labels)), share[order].numpy(), tick_label=labels)
    axes.set(xlabel="mean proportion of a document", title=f"Topics by {name}")
    return figure


def main(
    data: Annotated[Path | None, typer.Option(help="lda-c or UCI file, or folder of .txt")] = None,
    vocabulary: Annotated[Path | None, typer.Option(help="file of its words, one a line")] = None,
    engines: Annotated[
        str, typer.Option(help="gibbs, cavi, stochastic, em, svi (slow), nuts, mh (small corpora)")
    ] = ENGINES,
    number: Annotated[int, typer.Option("--topics", min=2)] = 20,
    alpha: Annotated[float, typer.Option(help="concentration of proportions")] = 0.1,
    eta: Annotated[float, typer.Option(help="concentration of topics")] = 0.01,
    sweeps: Annotated[int, typer.Option(min=500, help="of Gibbs, per chain")] = 1500,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="folder for tables, NetCDF and report")] = None,
) -> None:
    """Fit topics by several engines and judge them by one measure."""
    with plain_errors():
        corpus = reuters() if data is None else read_corpus(data, vocabulary)
        train, held = held_out(corpus)
        given = study(train, number, alpha=alpha, eta=eta, sweeps=sweeps)
        selected, folder = chosen(engines, given.engines), writable(out)
        comparison = compare(given.models, train, selected, seeds=(seed,))
        table = judged(comparison, train, held, alpha)
        print(table.to_string(float_format=lambda x: f"{x:,.2f}"))
        notes = {name: result.status for name, result in comparison.fits.items()}
        for name, text in (notes | comparison.failures).items():
            print(f"{name}: {text}")
        if folder is not None:
            figure = picture(*next(iter(comparison.fits.items())))
            figure.savefig(folder / "topics.png", dpi=100)
            comparison.save(folder, figures={"Topics: the most probable words": figure})
            with whole(folder / "perplexity.csv") as path:
                table.to_csv(path)
            print(f"written to {folder}: *.csv, report.html, topics.png, and *.nc by engine")
        if comparison.failures:
            raise typer.Exit(FAILED)


if __name__ == "__main__":
    typer.run(main)
