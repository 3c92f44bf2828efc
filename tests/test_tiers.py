"""Eager, traced and compiled evaluation give one answer, and leave no trace of themselves."""

import logging
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from inference import HMC, MH, NUTS, SVI, fit, graph
from inference.codegen import build, compiler
from inference.codegen.build import Density
from inference.codegen.tape import Untraceable
from inference.program import isolated
from inference.target import Target
from tests.programs import CONTINUOUS, ENUMERATED, FEW, line

PROGRAMS = {**CONTINUOUS, **ENUMERATED}
SINGLE = ["line", "shapes", "bounded_by_another", "mixture", "hidden_markov"]  # in float32 too
COMPILED = ["line", "mixture"]  # some seconds each
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-4}  # of the largest number: thousands of eps

needs_compiler = pytest.mark.skipif(not graph.has_compiler(), reason="there is no C++ compiler")
quiet = pytest.mark.filterwarnings("ignore::inference.InferenceWarning")


def target(program, tier, **settings):
    dtype = torch.get_default_dtype()
    return Target(program.log_density, program.dim, dtype=dtype, tier=tier, **settings)


def points(program, count=4):
    generator = torch.Generator().manual_seed(3)
    white = torch.randn(count, program.dim, generator=generator, dtype=torch.float64)
    return white.to(torch.get_default_dtype())


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        scale = float(1 + other.abs().max())
        tolerance = TOLERANCE[other.dtype] * scale
        torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float64) for name in PROGRAMS), *((name, torch.float32) for name in SINGLE)],
    ids=str,
)
def test_eager_and_traced_agree_with_the_program_run_point_by_point(name, dtype):
    with isolated(dtype):
        program = PROGRAMS[name].bound()
        x = points(program)
        expected = graph.loop(program.log_density, x)
        assert bool(torch.isfinite(expected[0]).all())
        for tier in ("eager", "traced"):
            evaluated = target(program, tier)
            assert_same(evaluated.log_density_and_grad(x), expected)
            assert_same([evaluated.log_density(x)], expected[:1])
            # once more, elsewhere: nothing is left of the first points
            other = -1.5 * x
            assert_same(
                evaluated.log_density_and_grad(other), graph.loop(program.log_density, other)
            )
    if dtype == torch.float32:
        with isolated(torch.float64):
            double = graph.loop(PROGRAMS[name].bound().log_density, x.double())
        assert_same(expected, [part.float() for part in double])


@needs_compiler
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_agrees_with_the_program_run_point_by_point(name, caplog):
    with isolated(torch.float64), caplog.at_level(logging.WARNING, "inference"):
        program = PROGRAMS[name].bound()
        x = points(program)
        evaluated = target(program, "compiled")
        for part in (x, -1.5 * x, 20 * x):
            assert_same(evaluated.log_density_and_grad(part), graph.loop(program.log_density, part))
        assert_same([evaluated.log_density(x)], graph.loop(program.log_density, x)[:1])
    assert not caplog.records


# -- a branch on a value is not baked in -----------------------------------------------------------


def branches(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = 1.0 if m > 0.2 else 2.0
    pyro.sample("y", dist.Normal(m, scale).expand([4]).to_event(1), obs=y)


def converts(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = 1.0 + float(m) ** 2
    pyro.sample("y", dist.Normal(0.0, scale).expand([4]).to_event(1), obs=y)


def leaves_torch(y):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    scale = torch.as_tensor(1 + np.square(m.detach().numpy()))
    pyro.sample("y", dist.Normal(0.0, scale).expand([4]).to_event(1), obs=y)


BAKED = {
    "branches": (branches, "cannot be traced"),
    "converts": (converts, "cannot be traced"),
    "leaves_torch": (leaves_torch, "cannot be traced|disagrees with the program"),
}


@pytest.mark.parametrize("name", BAKED)
@pytest.mark.parametrize("tier", ["traced", "compiled", "auto"])
def test_what_depends_on_a_value_is_not_baked_in(name, tier, caplog):
    program, notice = BAKED[name]
    with isolated(torch.float64), caplog.at_level(logging.WARNING, "inference"):
        bound = PROGRAMS["with_factor"]._replace(program=program).bound()
        x = torch.tensor([[-1.0], [0.1], [0.3], [1.5]])
        evaluated = target(bound, tier)
        for part in (x, x.flip(0), x[:2]):
            assert_same(evaluated.log_density_and_grad(part), graph.loop(bound.log_density, part))
    assert notices(caplog)
    for record in caplog.records:
        assert any(text in record.message for text in notice.split("|"))


def notices(caplog):
    return [record.message for record in caplog.records if record.name == "inference"]


# -- without a compiler ----------------------------------------------------------------------------


def no_compiler():
    return None


def c_fails(*_):
    raise compiler.CompilerError("gcc failed: unrecognised option")


def c_lies(self, x):
    value, gradient = graph.loop(self.function, x)
    return value + 1, gradient


def fails(*_):
    raise RuntimeError("g++: command not found\nand much more that nobody reads")


def lies(traced, example):
    def wrong(x):
        value, gradient = traced.forward(x)
        return value + 1, gradient

    return wrong


def refuses(*_):
    raise Untraceable("an operation that is not known")


WITHOUT = {
    "none": ([(compiler, "compiler", no_compiler)], "no C compiler was found"),
    "broken": ([(compiler, "_compile", c_fails)], "gcc failed: unrecognised option"),
    "wrong": ([(Density, "__call__", c_lies), (graph, "compiled", lambda g, _: g.forward)],
              "The program as C disagrees with the program"),
    "no inductor": ([(build, "lower", refuses), (graph, "has_compiler", lambda: False)],
                    "No C++ compiler was found"),
    "broken inductor": ([(build, "lower", refuses), (graph, "compiled", fails)],
                        "The compiler failed (g++: command not found)"),
    "wrong inductor": ([(build, "lower", refuses), (graph, "compiled", lies)],
                       "The compiled program disagrees with the program"),
}  # fmt: skip


@quiet
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, NUTS(chains=2, warmup=5, draws=5, tier="compiled")) for name in WITHOUT),
        ("none", SVI(steps=20, draws=300, tier="compiled")),
        ("broken", SVI(guide="laplace", draws=300, tier="compiled")),
        ("wrong", MH(chains=2, warmup=5, draws=5, thin=1, tier="compiled")),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_without_a_compiler_a_notice_of_one_line_and_the_same_answers(
    name, engine, monkeypatch, caplog
):
    replacements, notice = WITHOUT[name]
    monkeypatch.setattr(compiler, "_folder", lambda: None)
    for where, attribute, replacement in replacements:
        monkeypatch.setattr(where, attribute, replacement)
    with caplog.at_level(logging.WARNING, "inference"):
        found = fit(line, PROGRAMS["line"].data, engine)
    assert len(notices(caplog)) == 1
    assert notices(caplog)[0].startswith(notice)
    assert "\n" not in notices(caplog)[0]
    traced = type(engine)(**{**engine.settings(), "tier": "traced"})
    expected = fit(line, PROGRAMS["line"].data, traced)
    torch.testing.assert_close(found.posterior.draws, expected.posterior.draws, rtol=0, atol=0)


def test_auto_compiles_only_what_repays_the_compiler(monkeypatch):
    compilations = []

    def counted(traced, example):
        compilations.append(len(example))
        return traced.forward

    monkeypatch.setattr(graph, "compiled", counted)
    monkeypatch.setattr(graph, "has_compiler", lambda: True)
    with isolated(torch.float64):
        program = PROGRAMS["line"].bound()
        for calls, written in [(0, False), (100, False), (10_000, True)]:
            made = target(program, "auto", calls=calls)
            made.log_density_and_grad(points(program))
            assert (made.native(points(program)) is not None) == written
        monkeypatch.setattr(build, "lower", refuses)
        for calls, expected in [(10_000, 0), (10_000_000, 1)]:  # Inductor takes longer
            target(program, "auto", calls=calls).log_density_and_grad(points(program))
            assert len(compilations) == expected


def test_what_little_work_did_not_repay_is_compiled_for_more(monkeypatch):
    monkeypatch.setattr(build, "_SECONDS_OF_TRACE", 0.0)
    monkeypatch.setattr(graph, "compiled", fails)
    with isolated(torch.float64):
        program = PROGRAMS["line"].bound()
        x = points(program)
        for calls, written in [(201, False), (1_000_000, True), (201, True)]:
            made = target(program, "auto", calls=calls, shared=program.compiled)
            made.log_density_and_grad(x)
            assert (made.native(x) is not None) == written


def test_no_more_than_the_time_given_goes_into_compiling(monkeypatch):
    monkeypatch.setattr(graph, "compiled", fails)
    with isolated(torch.float64):
        program = PROGRAMS["line"].bound()
        x = points(program)
        for seconds, written in [(1e-3, False), (1.0, True), (None, True)]:
            made = target(program, "auto", calls=10_000_000, compiling=seconds)
            assert_same(made.log_density_and_grad(x), graph.loop(program.log_density, x))
            assert (made.native(x) is not None) == written


@quiet
def test_only_the_steps_of_an_optimiser_are_compiled(monkeypatch):
    sizes = []

    def counted(traced, example):
        sizes.append(len(example))
        return traced.forward

    monkeypatch.setattr(build, "lower", refuses)
    monkeypatch.setattr(graph, "compiled", counted)
    monkeypatch.setattr(graph, "has_compiler", lambda: True)
    fit(line, PROGRAMS["line"].data, SVI(steps=5, draws=300, particles=7, tier="compiled"))
    assert sizes == [7]


# -- state of the process --------------------------------------------------------------------------


def state():
    from torch._inductor import config

    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "validation": pyro.distributions.Normal._validate_args,
        "torch validation": torch.distributions.Distribution._validate_args,
        "inductor": (config.compile_threads, config.cpp.threads),
        "dirichlet": torch.distributions.dirichlet._Dirichlet,
        "filters": list(warnings.filters),
        "random": torch.get_rng_state().tolist(),
    }


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@quiet
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_fit_has_the_same_draws_in_every_tier_and_leaves_global_state_alone(dtype, two_threads):
    import torch._inductor.compile_fx  # which sets up state of its own

    before, drawn = state(), {}
    tiers = ["eager", "traced"]
    if dtype == "float32" and graph.has_compiler():
        tiers.append("compiled")
    for tier in tiers:
        engine = HMC(chains=2, warmup=0, draws=4, steps=2, step_size=0.05, tier=tier)
        fitted = fit(line, PROGRAMS["line"].data, engine, dtype=dtype)
        fitted.predict()
        fitted.to_arviz(log_likelihood=True)
        drawn[tier] = fitted.posterior.draws
        assert state() == before
    tolerance = 1e-9 if dtype == "float64" else 1e-3
    for tier in tiers[1:]:
        torch.testing.assert_close(drawn[tier], drawn["eager"], rtol=tolerance, atol=tolerance)


@quiet
def test_threads_and_global_state_are_as_before_after_an_error(two_threads):
    def program(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        runs.append(1)
        if len(runs) > 10:
            raise RuntimeError("in the midst of it")
        pyro.sample("y", dist.Normal(m, 1.0).expand([4]).to_event(1), obs=y)

    runs: list[int] = []
    before = state()
    with pytest.raises(RuntimeError, match="in the midst of it"):
        fit(program, {"y": FEW}, HMC(chains=2, warmup=2, draws=4, steps=1, tier="eager"))
    assert state() == before


def test_one_tensor_for_two_arguments_is_not_one_argument():
    x = torch.tensor(2.0)
    product = graph.trace(lambda a, b: a * b.square(), x, x)
    assert float(product(torch.tensor(3.0), torch.tensor(5.0))) == 75.0


def test_a_graph_is_free_of_mutation():
    def function(x):
        y = torch.zeros_like(x)
        y[0] = x[0].exp()
        y += x
        return y.sum()

    traced = graph.trace(function, torch.tensor([0.3, 0.7]))
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5]])
    found = graph.batched(traced, x).forward(x)
    assert_same(found, graph.loop(function, x))


def test_a_filled_tensor_is_one_that_vmap_makes_at_once():
    """It takes aten::fill row by row, with a warning on standard error."""
    x = torch.tensor([0.3, 0.7])
    traced = graph.trace(lambda x: (x * torch.empty_like(x).fill_(2.0)).sum(), x)
    assert torch.ops.aten.fill.Scalar not in [node.target for node in traced.graph.nodes]
    assert float(traced(x)) == pytest.approx(2.0)


@pytest.mark.parametrize("tier", ["traced", pytest.param("compiled", marks=needs_compiler)])
def test_a_point_whose_matrix_cannot_be_factored_is_refused_alone(tier):
    """A batch of points is not lost to one of them, as that of a chain far away."""

    def log_density(x):
        covariance = torch.eye(2) + x[0] * torch.ones(2, 2).fill_diagonal_(0.0)  # |x_0| < 1
        return dist.MultivariateNormal(torch.zeros(2), covariance, validate_args=False).log_prob(
            torch.ones(2)
        )

    with isolated(torch.float64):
        x = torch.tensor([[0.5, 0.0], [1.5, 0.0], [-0.2, 0.0]])
        value, gradient = Target(log_density, 2, tier=tier).log_density_and_grad(x)
        assert torch.isfinite(value).tolist() == [True, False, True]
        good = graph.loop(log_density, x[::2])
        assert_same((value[::2], gradient[::2]), good)
