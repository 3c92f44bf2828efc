"""Latent Dirichlet allocation against enumeration of all topics, hand computation and the law."""

from __future__ import annotations

import inspect
import itertools
from functools import cache, partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, special
from torch.distributions import Dirichlet, kl_divergence

from inference import CAVI, EM, MH, NUTS, SVI, Gibbs, fit, topics
from inference.fit import bind
from ppl_models import (
    DataError,
    EngineError,
    LatentDirichletAllocation,
    ModelError,
    lda,
    word_counts,
)
from ppl_models import lda_gibbs as tokens
from ppl_models import lda_kernels as kernels
from ppl_models.corpora import held_out, read_corpus, read_texts, reuters
from ppl_models.counts import corpus
from ppl_models.noise import Noise
from ppl_models.threads import each
from tests.statistics import LEVEL, critical, error, quiet, student

pytestmark = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")

TINY = np.array([[2, 1, 0], [0, 1, 2]])
ALPHA, ETA = 0.5, 0.4
TOPICS = 2
MODEL = LatentDirichletAllocation(TOPICS, ALPHA, ETA)
RNG = np.random.default_rng(0)
SMALL = RNG.poisson(3 * RNG.dirichlet(np.full(12, 0.3), 3)[RNG.integers(0, 3, 20)] * 4)
SMALL[:, 0] += 1


class Enumerated:
    """Exact posterior of the tiny corpus by a sum over all topics of its tokens."""

    def __init__(self) -> None:
        doc, word = (np.repeat(i, TINY[TINY > 0]) for i in np.nonzero(TINY))
        self.z = np.array(list(itertools.product(range(TOPICS), repeat=len(doc))))
        own = np.eye(TOPICS)[self.z]  # (N, tokens, K)
        by_doc = np.stack([own[:, doc == d].sum(1) for d in range(2)], 1)  # (N, M, K)
        by_word = np.stack([own[:, word == w].sum(1) for w in range(3)], 1)  # (N, V, K)
        self.log_joint = _polya(by_doc, ALPHA, 2).sum(-1) + _polya(by_word, ETA, 1).sum(-1)
        self.evidence = special.logsumexp(self.log_joint)
        self.p = np.exp(self.log_joint - self.evidence)
        theta = (by_doc + ALPHA) / (by_doc + ALPHA).sum(2, keepdims=True)
        phi = (by_word + ETA) / (by_word + ETA).sum(1, keepdims=True)
        # given z, topics and proportions are independent
        self.word = np.einsum("n,ndk,nwk->dw", self.p, theta, phi)  # E p_dw


def _polya(counts: np.ndarray, prior: float, axis: int) -> np.ndarray:
    size, total = counts.shape[axis], counts.sum(axis)
    alone = special.gammaln(size * prior) - special.gammaln(total + size * prior)
    return alone + (special.gammaln(counts + prior) - special.gammaln(prior)).sum(axis)


@cache
def exact() -> Enumerated:
    return Enumerated()


# -- collapsed Gibbs -------------------------------------------------------------------------------

SWEEPS = 400
FAMILY = 2 + 6 * 5 // 2 + 2 * 6


def chains(model: LatentDirichletAllocation, count: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Topics of tokens (C, S, tokens), and log p(w, z) (C, S), of every second sweep."""
    data = model.prepare(TINY)
    noise = Noise.seeded(3, count)
    state = model.initial(data, count, noise)
    (sweep,) = model.conditionals(data).values()
    z, log_joint = [], []
    for step in range(50 + SWEEPS):
        state = sweep(state, noise.fold(step))
        if step >= 50 and step % 2:
            z.append(state["z"].numpy().copy())
            log_joint.append(model.complete(data, state, noise)["log_joint"].numpy())
    return np.stack(z, 1), np.stack(log_joint, 1)


def surprises(z: np.ndarray, log_joint: np.ndarray) -> dict[str, float]:
    """Where pairs of tokens with one topic, or the moments of log p(w, z), miss the exact ones."""
    truth = exact()
    mean = truth.p @ truth.log_joint
    off = {
        "log_joint": log_joint - mean,
        "log_joint squared": (log_joint - mean) ** 2 - truth.p @ (truth.log_joint - mean) ** 2,
    }
    for i, j in itertools.combinations(range(z.shape[2]), 2):
        together = truth.p @ (truth.z[:, i] == truth.z[:, j])
        off[f"{i} with {j}"] = (z[:, :, i] == z[:, :, j]) - together
    limit = critical(FAMILY, len(z))
    return {k: student(v) for k, v in off.items() if not abs(student(v)) <= limit}


def test_collapsed_gibbs_draws_topics_of_tokens_from_their_exact_posterior():
    z, log_joint = chains(MODEL)
    assert not surprises(z, log_joint)
    assert error(log_joint) < 0.05


SABOTAGES = {
    "the token is left in its own counts": ("(local[old] - 1.0) * (row[old] - 1 + eta)",
                                            "local[old] * (row[old] + eta)"),
    "the length of the topic keeps the token": ("(totals[old] - 1.0 + prior)",
                                                "(totals[old] + prior)"),
    "the prior of words is forgotten": ("weight[k] * (row[k] + eta)", "weight[k] * (row[k] + 1.0)"),
    "documents share their topics": ("local[:] = alpha", "local[:] = 3 * alpha"),
    "the same number for every token": ("_uniform(seed, i)", "_uniform(seed, 0)"),
}  # fmt: skip


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_broken_sweep_is_found(name, monkeypatch):
    source = inspect.getsource(tokens.sweep.py_func)
    old, new = SABOTAGES[name]
    assert source.count(old) == 1
    scope = dict(vars(tokens))
    source = "from __future__ import annotations\n" + source[source.index("def ") :]
    exec(source.replace(old, new), scope)
    monkeypatch.setattr(tokens, "sweep", scope["sweep"])
    assert surprises(*chains(MODEL, 32))


@pytest.mark.parametrize(
    "engine",
    [
        Gibbs(chains=64, warmup=30, draws=200),
        NUTS(chains=64, warmup=200, draws=200, tier="traced"),
    ],
    ids=["Gibbs", "NUTS"],
)
def test_chains_agree_with_enumeration_on_what_labels_do_not_change(engine):
    draws = quiet(MODEL, TINY, engine, seed=4).posterior.draws
    p = torch.einsum("csdk,cskw->csdw", draws["proportions"], draws["topics"]).numpy()
    limit = critical(FAMILY, 64)
    for d, w in np.ndindex(2, 3):
        off = p[:, :, d, w] - exact().word[d, w]
        assert abs(student(off)) <= limit
        assert error(off) < 0.01


def test_a_chain_does_not_depend_on_its_neighbours():
    few, many = (
        fit(MODEL, SMALL, Gibbs(chains=c, warmup=5, draws=3), seed=1).posterior for c in (2, 3)
    )
    torch.testing.assert_close(few.stats["log_joint"], many.stats["log_joint"][:2], rtol=0, atol=0)
    again = fit(MODEL, SMALL, Gibbs(chains=2, warmup=5, draws=3), seed=1).posterior
    torch.testing.assert_close(few.draws["topics"], again.draws["topics"], rtol=0, atol=0)


@pytest.mark.parametrize(
    "engine",
    [
        Gibbs(chains=3, warmup=5, draws=3),
        CAVI(restarts=3, max_steps=5, draws=3),
        EM(objective="likelihood", restarts=3, max_steps=5),
    ],
    ids=["Gibbs", "CAVI", "EM"],
)
def test_threads_change_nothing_and_float32_is_kept(engine, monkeypatch):
    alone = fit(MODEL, SMALL, engine, seed=1).posterior.draws["topics"]
    monkeypatch.setattr(lda, "each", partial(each, threads=2))
    together = fit(MODEL, SMALL, engine, seed=1).posterior.draws["topics"]
    torch.testing.assert_close(alone, together, rtol=0, atol=0)
    single = fit(MODEL, SMALL, engine, seed=1, dtype="float32").posterior.draws["topics"]
    assert single.dtype == torch.float32
    assert bool(torch.isfinite(single).all())
    assert bool(((single.sum(-1) - 1).abs() < 1e-5).all())


def test_chunks_of_entries_change_nothing(monkeypatch):
    whole = bind(MODEL, SMALL).program
    x = whole.example()
    expected = whole.log_density(x)
    monkeypatch.setattr(word_counts, "_CHUNK", 14)
    torch.testing.assert_close(whole.log_density(x), expected)


def test_reuters_reaches_the_published_log_joint():
    """Of three runs of the package ``lda``, from its start: token i has topic i mod K.

    They ended at -655,858, -654,278 and -655,687; six chains of ours had an sd of 1,300.
    """
    pytest.importorskip("lda", reason="the package lda, with its data, is not installed")
    model = LatentDirichletAllocation(20, 0.1, 0.01)
    data = model.prepare(reuters())
    assert (data["documents"], data["words"], int(data["count"].sum())) == (395, 4258, 84010)
    noise = Noise.seeded(0, 2)
    state = model.initial(data, 2, noise)
    word = data["word"].repeat_interleave(data["count"].long())
    state["z"][:] = torch.arange(len(word)) % 20
    own = torch.nn.functional.one_hot(state["z"][0].long()).int()
    state["by_word"][:] = torch.zeros_like(state["by_word"][0]).index_add_(0, word, own)
    (sweep,) = model.conditionals(data).values()
    for step in range(1500):
        state = sweep(state, noise.fold(step))
    found = model.complete(data, state, noise)["log_joint"]
    published = np.mean([-655_858, -654_278, -655_687])
    assert abs(float(found.mean()) - published) < 3 * 1300 * (1 / 2 + 1 / 3) ** 0.5


# -- mean field ------------------------------------------------------------------------------------


def test_special_functions():
    x = np.concatenate([np.geomspace(5e-3, 1e6, 60), [1.0, 2.0]])
    for value in x:
        psi = special.digamma(value)
        assert kernels.digamma(value) == pytest.approx(psi, rel=1e-12, abs=1e-13)
        assert kernels.exp_digamma(value) == pytest.approx(np.exp(psi), rel=1e-11)


def test_expected_topics_and_their_divergence():
    weights = RNG.gamma(0.3, size=(30, 4)) + 1e-3
    out = np.empty_like(weights)
    divergence = kernels.expected_topics(weights, 0.05, out)
    q = Dirichlet(torch.tensor(weights.T))
    prior = Dirichlet(torch.full((4, 30), 0.05, dtype=torch.float64))
    assert divergence == pytest.approx(float(kl_divergence(q, prior).sum()), rel=1e-10)
    expected = special.digamma(weights) - special.digamma(weights.sum(0))
    np.testing.assert_allclose(out, np.exp(expected), rtol=1e-10, atol=1e-300)


def expanded_elbo(model: LatentDirichletAllocation, counts: np.ndarray, weights: torch.Tensor):
    """The ELBO written out over every entry and topic: (old topics, new documents' factors)."""
    data = model.prepare(counts)
    gamma = model.document_factors(data, {"weights": weights[None]})[0]
    log_phi = weights.digamma() - weights.sum(0).digamma()  # (V, K)
    log_theta = gamma.digamma() - gamma.sum(-1, keepdim=True).digamma()
    score = log_theta[data["doc"]] + log_phi[data["word"]]
    r = score.softmax(-1)
    q_topics, q_theta = Dirichlet(weights.T), Dirichlet(gamma)
    p_topics = Dirichlet(torch.full_like(weights.T, model.eta))
    p_theta = Dirichlet(torch.full_like(gamma, model.alpha))
    return (
        (data["count"][:, None] * r * (score - r.log())).sum()
        - kl_divergence(q_topics, p_topics).sum()
        - kl_divergence(q_theta, p_theta).sum()
    )


def test_the_elbo_is_exact_rises_and_bounds_the_evidence():
    model = LatentDirichletAllocation(TOPICS, ALPHA, ETA, inner_steps=2000, inner_tol=1e-10)
    data = model.prepare(TINY)
    factors = model.initial_factors(data, 3, Noise.seeded(0, 3))
    path = []
    for _ in range(60):
        old = factors
        factors, elbo = model.coordinate_step(data, old, None)
        path.append(elbo)
        for r in range(3):
            by_hand = expanded_elbo(model, TINY, old["weights"][r])
            assert float(elbo[r]) == pytest.approx(float(by_hand), abs=1e-9)
    rise = torch.stack(path).diff(dim=0)
    assert bool((rise > -1e-9).all())
    assert bool((rise.sum(0) > 0.1).all())
    assert bool((path[-1] < exact().evidence).all())
    assert bool((path[-1] > exact().evidence - 5).all())


def test_cavi_rises_on_a_larger_corpus_and_returns_its_factors_moments():
    engine = CAVI(restarts=2, max_steps=300, draws=10)
    result = fit(MODEL, SMALL, engine, seed=2)
    trace = np.array(result.posterior.attributes["elbo_trace"])
    assert (np.diff(trace) > -1e-4 * abs(trace[-1])).all()
    data = result.data
    factors = MODEL.initial_factors(data, 1, Noise.seeded(0, 1))
    for _ in range(5):
        factors, _ = MODEL.coordinate_step(data, factors, None)
    draws = MODEL.factor_draws(data, factors, Noise.seeded(1, 1), 4000)
    gamma = MODEL.document_factors(data, factors)
    weights = factors["weights"].transpose(1, 2)
    for name, concentration in (("topics", weights), ("proportions", gamma)):
        q = Dirichlet(concentration)
        off = (draws[name][0].mean(0) - q.mean[0]) / (q.variance[0] / 4000).sqrt()
        assert float(off.abs().max()) < 5.5  # some 60 means: a chance of 2e-6
    log_q = MODEL.factor_log_density(data, factors, draws)
    by_hand = Dirichlet(weights[0]).log_prob(draws["topics"][0]).sum(-1)
    by_hand = by_hand + Dirichlet(gamma[0]).log_prob(draws["proportions"][0]).sum(-1)
    torch.testing.assert_close(log_q[0], by_hand)


def test_steps_on_batches_average_to_the_step_on_all_documents():
    data = MODEL.prepare(SMALL)
    factors = MODEL.initial_factors(data, 1, Noise.seeded(0, 1))
    whole, elbo = MODEL.coordinate_step(data, factors, None)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    parts = [MODEL.coordinate_step(data, factors, rows) for rows in order.split(5)]
    mean = torch.stack([part["weights"] for part, _ in parts]).mean(0)
    torch.testing.assert_close(mean, whole["weights"])
    # the documents' part of the ELBO alone is sampled
    torch.testing.assert_close(torch.stack([value for _, value in parts]).mean(0), elbo)


def test_stochastic_steps_end_near_the_batch_optimum():
    batch = fit(MODEL, SMALL, CAVI(restarts=4, max_steps=300, draws=5))
    online = fit(MODEL, SMALL, CAVI(restarts=4, max_steps=400, draws=5, batch_size=5))
    gap = batch.posterior.attributes["elbo"] - online.posterior.attributes["elbo"]
    assert gap < 0.02 * abs(batch.posterior.attributes["elbo"])


# -- expectation-maximisation ----------------------------------------------------------------------


def test_a_topic_for_every_document_reaches_the_saturated_likelihood():
    counts = SMALL[:3]
    result = fit(
        LatentDirichletAllocation(3), counts, EM(objective="likelihood", restarts=4, tol=1e-5)
    )
    share = counts / counts.sum(1, keepdims=True)
    saturated = float(special.xlogy(counts, share).sum())
    assert result.posterior.attributes["objective_value"] == pytest.approx(saturated, abs=1e-6)
    p = result.posterior.draws["proportions"] @ result.posterior.draws["topics"]
    np.testing.assert_allclose(p.numpy(), share, atol=1e-6)


def test_em_ascends_the_joint_to_a_stationary_point():
    model = LatentDirichletAllocation(3, alpha=1.3, eta=1.2)
    problem = bind(model, SMALL)
    density = problem.outputs.density("joint")
    params = model.start(problem.data, 3, Noise.seeded(0, 3))
    path = [density(params)]
    for _ in range(1500):
        params = model.m_step(problem.data, model.e_step(problem.data, params), "joint")
        path.append(density(params))
    assert bool((torch.stack(path).diff(dim=0) > -1e-9).all())
    point = {k: v[0].clone().requires_grad_(True) for k, v in params.items()}
    problem.program.log_joint(point).backward()
    for value in point.values():  # Lagrange: on a simplex all components have one derivative
        assert value.grad is not None
        slope, x = value.grad, value.detach()
        assert float((x * (slope - (slope * x).sum(-1, keepdim=True))).abs().max()) < 1e-4


def test_em_refuses_priors_without_a_mode_before_work(monkeypatch):
    monkeypatch.setattr(LatentDirichletAllocation, "start", None)
    with pytest.raises(EngineError, match=r"alpha=0.5 and eta=0.4 below 1.*objective=\"likelihood"):
        fit(MODEL, TINY, EM())
    with pytest.raises(EngineError, match=r"with eta=0\.1 below 1"):
        fit(LatentDirichletAllocation(2, 1.0, 0.1), TINY, EM())


# -- the program and its other engines -------------------------------------------------------------


def test_the_program_is_the_sum_over_topics_of_tokens():
    problem = bind(MODEL, TINY)
    theta = torch.tensor(RNG.dirichlet(np.ones(2), 2))
    phi = torch.tensor(RNG.dirichlet(np.ones(3), 2))
    found = problem.program.log_likelihood({"topics": phi, "proportions": theta})
    assert float(found) == pytest.approx(float(special.xlogy(TINY, (theta @ phi).numpy()).sum()))


@pytest.mark.parametrize("engine", [MH(), NUTS()])
def test_chains_on_many_coordinates_are_refused_with_the_limit(engine):
    counts = sparse.random_array((60, 2000), density=0.05, rng=0, dtype=float)
    counts.data = np.ceil(counts.data)
    with pytest.raises(EngineError, match=r"6,117 coordinates.*above 5,000") as caught:
        fit(LatentDirichletAllocation(3), counts, engine)
    assert "use Gibbs" in str(caught.value)


def test_svi_takes_entries_in_batches():
    result = fit(MODEL, SMALL, SVI(steps=200, batch_size=40, draws=10, tier="traced"))
    assert result.posterior.draws["topics"].shape == (1, 10, 2, 12)


def test_predictions_are_counts_of_documents_of_the_same_length():
    result = fit(MODEL, SMALL, Gibbs(chains=2, warmup=20, draws=300))
    predicted = result.predict()["count"]
    data = result.data
    draws = result.posterior.draws
    p = torch.einsum("csdk,cskw->csdw", draws["proportions"], draws["topics"])
    length = torch.as_tensor(SMALL.sum(1), dtype=p.dtype)[data["doc"]]
    mean = length * p[:, :, data["doc"], data["word"]]
    off = (predicted - mean).flatten(0, 1)
    assert float((off.mean(0) / (off.std(0) / 600**0.5)).abs().max()) < 5
    by_doc = torch.zeros(2, 300, 20, dtype=p.dtype).index_add_(2, data["doc"], predicted)
    assert bool((by_doc <= torch.as_tensor(SMALL.sum(1))).all())


def test_topics_of_all_draws_get_one_numbering():
    phi = torch.tensor(RNG.dirichlet(np.full(30, 0.1), 6))
    theta = torch.tensor(RNG.dirichlet(np.ones(6), 4))
    orders = torch.stack([torch.randperm(6) for _ in range(10)]).reshape(2, 5, 6)
    draws = {
        "topics": torch.stack([torch.stack([phi[o] for o in row]) for row in orders]),
        "proportions": torch.stack([torch.stack([theta[:, o] for o in row]) for row in orders]),
    }
    moved = LatentDirichletAllocation(6).canonical(draws)
    last = orders[0, -1]
    torch.testing.assert_close(moved["topics"], phi[last].expand(2, 5, 6, 30))
    torch.testing.assert_close(moved["proportions"], theta[:, last].expand(2, 5, 4, 6))


# -- data ------------------------------------------------------------------------------------------


def test_all_forms_of_a_corpus_are_the_same():
    doc, word = np.nonzero(TINY)
    triples = {"doc": doc, "word": word, "count": TINY[doc, word]}
    forms = [
        TINY, TINY.tolist(), TINY * 1.0, torch.tensor(TINY), sparse.csr_array(TINY),
        sparse.csc_matrix(TINY), pd.DataFrame(TINY), triples, pd.DataFrame(triples),
        {"counts": TINY}, {k: np.concatenate([v[::-1], [0]]) * 1 for k, v in triples.items()}
        | {"count": np.concatenate([TINY[doc, word][::-1], [0]])},
    ]  # fmt: skip
    for form in forms:
        data = corpus(form)
        assert data["doc"].tolist() == [0, 0, 1, 1]
        assert data["word"].tolist() == [0, 1, 1, 2]
        assert data["count"].tolist() == [2, 1, 1, 2]
        assert (data["documents"], data["words"]) == (2, 3)
    assert corpus(corpus(TINY))["count"].tolist() == [2, 1, 1, 2]
    assert corpus(pd.DataFrame(TINY, columns=["oil", "gas", "tax"]))["vocabulary"][2] == "tax"


NAMED = pd.DataFrame([[1, 0, 2], [0, -3, 1]], columns=["oil", "gas", "tax"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (NAMED, r"document 1, word 1 \('gas'\) has the count -3; give counts, not diff"),
        ([[1, 0.5], [1, 1]], "document 0, word 1 has the count 0.5; .*tf-idf"),
        ([[1, np.nan], [1, 1]], "document 0, word 1 has the count nan; fill in"),
        ([[1, np.inf], [1, 1]], "document 0, word 1 has the count inf"),
        ([[1, 1], [0, 0], [0, 0]], "document 1 has no words, and 1 more have none; drop"),
        (np.zeros((0, 3)), "the corpus has no words|empty"),
        (pd.DataFrame({"a": [1, 2], "text": ["x", "y"]}), "text.*not numbers"),
        ("counts.csv", "give a matrix"),
        ([1, 2, 3], "give a matrix"),
        ({"doc": [0], "word": [0]}, "count: missing"),
        ({"doc": [0, 1], "word": [0], "count": [1, 1]}, "differ in length"),
        ({"doc": [-1], "word": [0], "count": [1]}, "doc: row 0 is -1"),
        ({"doc": [0], "word": [7], "count": [1], "words": 5}, "words=5: the data number.*7"),
        ({"doc": [0, 2], "word": [0, 0], "count": [1, 1]}, "document 1 has no words"),
        ({"counts": TINY, "vocabulary": ["a"]}, "1 words for 3 columns"),
        ({"counts": TINY, "lables": [1]}, "lables: unknown"),
    ],
)
def test_bad_counts_are_refused_with_the_place_and_the_remedy(data, message):
    with pytest.raises(DataError, match=message):
        fit(MODEL, data, Gibbs())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"topics": 0}, "topics=0"),
        ({"topics": 1}, "topics=1: give 2"),
        ({"topics": 2.5}, "topics=2.5"),
        ({"topics": 2, "alpha": 0}, "alpha=0"),
        ({"topics": 2, "eta": np.nan}, "eta=nan"),
        ({"topics": 2, "inner_steps": 0}, "inner_steps=0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ModelError, match=message):
        LatentDirichletAllocation(**settings)


def test_files_are_read(tmp_path):
    (tmp_path / "ap.dat").write_text("2 0:2 1:1\n0\n2 1:1 2:2\n")
    (tmp_path / "vocab.txt").write_text("oil\ngas\ntax\n")
    data = corpus(read_corpus(tmp_path / "ap.dat", tmp_path / "vocab.txt"))
    assert data["count"].tolist() == [2, 1, 1, 2]
    assert data["vocabulary"] == ["oil", "gas", "tax"]
    (tmp_path / "uci.txt").write_text("3\n4\n4\n1 1 2\n1 2 1\n3 2 1\n3 3 2\n")
    data = corpus(read_corpus(tmp_path / "uci.txt"))
    assert (data["documents"], data["words"], data["word"].tolist()) == (2, 4, [0, 1, 1, 2])
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, text in (("a", "Oil and gas"), ("b", "gas tax"), ("c", "the"), ("d", "oil tax")):
        (folder / f"{name}.txt").write_text(text)
    data = corpus(read_texts(folder))
    assert (data["documents"], data["vocabulary"]) == (3, ["gas", "oil", "tax"])


def test_every_tenth_document_is_held_out():
    train, held = (corpus(part) for part in held_out(SMALL))
    assert (train["documents"], held["documents"], held["words"]) == (18, 2, 12)
    assert float(held["count"].sum()) == SMALL[[9, 19]].sum()


@pytest.mark.parametrize(
    ("text", "message"),
    [("2 0:2\n", "line 1: not of the form"), ("1 a:1\n", "line 1"), ("3\n4\n2\n1 1 2\n", "whole")],
)
def test_broken_files_are_refused(text, message, tmp_path):
    (tmp_path / "file").write_text(text)
    with pytest.raises(DataError, match=message):
        read_corpus(tmp_path / "file")
    with pytest.raises(DataError, match="no such file"):
        read_corpus(tmp_path / "nothing")


# -- evaluation ------------------------------------------------------------------------------------

APART = np.array([[0.5, 0.3, 0.2, 0, 0], [0, 0, 0, 0.6, 0.4]])


def test_halves_take_half_of_every_document():
    data = corpus(SMALL)
    seen, scored = topics.halves(data, 0)
    np.testing.assert_array_equal(seen + scored, data["count"].numpy())
    assert (seen >= 0).all()
    by_doc = np.bincount(data["doc"].numpy(), seen)
    np.testing.assert_array_equal(by_doc, SMALL.sum(1) // 2)
    assert (topics.halves(data, 1)[0] != seen).any()


def test_perplexity_by_hand():
    # every token can only be of topic 0, so that proportions are (alpha + n / 2, alpha) / total
    counts = np.array([[3, 2, 1, 0, 0]])
    _, scored = topics.halves(corpus(counts), 0)
    share = (0.1 + 3) / (0.2 + 3)
    expected = np.exp(-(scored * np.log(share * APART[0, :3])).sum() / 3)
    assert topics.perplexity(APART, 0.1, counts) == pytest.approx(expected, rel=1e-6)
    # draws are averaged before the logarithm, whatever their labels
    mixed = np.stack([APART, APART[::-1], np.full((2, 5), 0.2)])
    p = (2 * share * APART[0, :3] + 0.2) / 3
    expected = np.exp(-(scored * np.log(p)).sum() / 3)
    assert topics.perplexity(torch.tensor(mixed), 0.1, counts) == pytest.approx(expected, rel=1e-6)


def test_fold_in_finds_the_topics_of_new_documents():
    theta = topics.fold_in(APART, 0.1, [[4, 2, 1, 0, 0], [0, 0, 0, 3, 4]])
    expected = [[7.1 / 7.2, 0.1 / 7.2], [0.1 / 7.2, 7.1 / 7.2]]
    np.testing.assert_allclose(theta, expected, rtol=1e-6)
    with pytest.raises(DataError, match=r"document 0 holds the unseen word 7"):
        topics.fold_in(APART, 0.1, {"doc": [0], "word": [7], "count": [1]})
    with pytest.raises(DataError, match="6 columns for a model of 5 words"):
        topics.perplexity(APART, 0.1, {"counts": np.eye(6)[:1]})
    with pytest.raises(DataError, match="divide each by its sum"):
        topics.perplexity(2 * APART, 0.1, np.ones((1, 5)))


def test_left_to_right_is_unbiased():
    phi = RNG.dirichlet(np.ones(4), 3)
    words = [0, 0, 1, 3]
    z = np.array(list(itertools.product(range(3), repeat=4)))
    by_topic = np.eye(3)[z].sum(1)
    truth = (np.exp(_polya(by_topic, 0.3, 1)) * phi[z, words].prod(1)).sum()
    counts = np.tile([2, 1, 0, 1], (4000, 1))
    found = np.exp(topics.left_to_right(phi, 0.3, counts, particles=3))
    t = (found.mean() - truth) / (found.std(ddof=1) / 4000**0.5)
    assert abs(t) < critical(1, 4000)
    assert found.std() / 4000**0.5 < 0.01 * truth
    assert LEVEL < 1e-3


def test_coherence_by_hand():
    # words 0 and 1 always together, in half of the documents; 2 never meets them
    counts = np.array([[1, 2, 0, 1], [3, 1, 0, 1], [0, 0, 1, 1], [0, 0, 2, 1]])
    phi = np.array([[0.5, 0.4, 0.06, 0.04], [0.5, 0.05, 0.4, 0.05], [0.5, 0.05, 0.05, 0.4]])
    np.testing.assert_allclose(topics.coherence(phi, counts, words=2), [1, -1, 0], atol=1e-12)
    three = topics.coherence(phi[:1], counts, words=3)
    np.testing.assert_allclose(three, [(1 - 1 - 1) / 3])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"doc": [0, 1], "word": [7, 0], "count": [1, 2]}, "document 0 holds the unseen word 7"),
        ([[1, 0, 2], [1, 1, 1], [3, 0, 0]], "the new data have 3; .*fold_in"),
        (
            {"counts": [[1, 0, 2], [1, 1, 1]], "vocabulary": ["oil", "gas", "bank"]},
            "'gas' is not in its place",
        ),
    ],
)
def test_predictions_refuse_words_and_documents_that_the_fit_has_not_seen(new, message):
    seen = {"counts": [[2, 1, 0], [0, 1, 2]], "vocabulary": ["oil", "bank", "gas"]}
    engine = Gibbs(chains=2, warmup=5, draws=5)
    result = quiet(LatentDirichletAllocation(2), seen, engine)
    with pytest.raises(DataError, match=message):
        result.predict(new)
    again = result.predict({"doc": [0, 1], "word": [0, 1], "count": [3, 4]})["count"]
    assert again.shape == (2, 5, 2)
