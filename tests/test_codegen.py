"""Log densities as C: every operation and every meeting of axes against autograd."""

import ctypes
import logging
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from inference import graph
from inference.codegen import compiler, elementwise
from inference.codegen.build import Density
from inference.codegen.compiler import CompilerError
from inference.codegen.tape import Untraceable
from inference.fit import bind
from inference.program import isolated
from ppl_models import PPCA, GaussianMixture, MixturePPCA, ORing
from tests.programs import CONTINUOUS, ENUMERATED

pytestmark = pytest.mark.skipif(compiler.compiler() is None, reason="there is no C compiler")

PROGRAMS = {**CONTINUOUS, **ENUMERATED}
RANDOM = np.random.default_rng(0)
TALL = torch.tensor(RANDOM.normal(size=(300, 2)))
WIDE = torch.tensor(RANDOM.normal(size=(200, 40)))
SQUARE = torch.tensor(RANDOM.normal(size=(70, 70)))
FLAGS = torch.tensor(RANDOM.uniform(size=300) < 0.4)
GROUP = torch.tensor(RANDOM.integers(0, 7, 300))
MANY = torch.tensor(RANDOM.integers(0, 50, 300))
LABEL = torch.tensor(RANDOM.integers(0, 3, 300))
ROW = torch.tensor(RANDOM.normal(size=300))


def assert_same(density, function, x, tolerance=1e-11):
    value, gradient = density(x)
    expected, slope = graph.loop(function, x)
    assert bool(torch.isfinite(expected).all())
    for found, right in ((value, expected), (gradient, slope)):
        scale = float(1 + right.abs().max())
        torch.testing.assert_close(found, right, atol=tolerance * scale, rtol=0)


def points(count, dim, dtype=torch.float64, scale=0.6):
    generator = torch.Generator().manual_seed(5)
    return scale * torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype)


# -- operations ------------------------------------------------------------------------------------

SHORT = {  # of six numbers
    "arithmetic": lambda x: ((x + 2) * x.flip(0) - x / 3 + 1 / (2 + x**2) - (-x) ** 3).sum(),
    "powers": lambda x: (x.square() + x**4 + (1 + x**2) ** 0.5 + (1 + x**2) ** -0.5 +
                         (2 + x**2) ** -2.0 + (1 + x**2) ** 1.7 + 2.0**x).sum(),
    "functions": lambda x: (x.exp() + (1 + x**2).log() + x.expm1() + (x**2).log1p() + x.sin() +
                            x.cos() + x.atan() + x.tanh() + torch.erf(x) + torch.erfc(x) +
                            (1 + x**2).rsqrt() + (0.1 * x).tan() + (2 + x**2).log2()).sum(),
    "gamma functions": lambda x: (torch.lgamma(1.5 + x**2) + torch.digamma(0.3 + x**2) +
                                  torch.digamma(x - 2.3) + torch.lgamma(7 + x) * x).sum(),
    "sigmoids": lambda x: (torch.sigmoid(9 * x) + torch.nn.functional.logsigmoid(5 * x) +
                           torch.nn.functional.softplus(-4 * x) + torch.relu(x)).sum(),
    "extremes": lambda x: (x.clamp(-0.3, 0.4) + torch.maximum(x, x.flip(0) * 2) +
                           torch.minimum(x, 0.1 * x) + x.abs() + x.amax() + x.amin()).sum(),
    "maximum with its place": lambda x: (x.view(2, 3).max(1).values ** 2).sum(),
    "choices": lambda x: torch.where((x > 0.1) & ~(x > 1) | (x < -1), x**2, -x).sum() +
    x.masked_fill(x < 0, 0.3).sum(),
    "shapes": lambda x: (x.view(2, 3).T.reshape(-1)[1:5:2] * x.view(3, 2)[1].repeat(1)).sum() +
    x.unsqueeze(0).expand(4, 6).sum() + x.view(2, 3, 1).permute(1, 2, 0).squeeze(1)[2].exp().sum(),
    "parts": lambda x: sum((k + 1) * p.square().sum() for k, p in enumerate(x.split([1, 2, 3]))) +
    torch.stack(x.unbind()).cumsum(0)[3] + torch.cat([x[:2], x[4:]]).cumprod(0).sum(),
    "softmax": lambda x: (torch.softmax(x, 0) * x).sum() + torch.log_softmax(x.view(2, 3), 1)[0, 1]
    + torch.logsumexp(x.view(2, 3), 0).square().sum() + x.logsumexp(0),
    "means": lambda x: x.mean() ** 2 + x.view(2, 3).mean(1).square().sum(),
    "padding": lambda x: (torch.nn.functional.pad(x, (2, 1), value=0.5) ** 2).cumsum(0).sum(),
    "matrices": lambda x: torch.linalg.cholesky(
        torch.eye(3, dtype=x.dtype) * 3 + torch.outer(x[:3], x[:3])).diagonal().log().sum() +
    torch.linalg.solve_triangular(
        x.view(2, 3)[:, :2].tril() + 2 * torch.eye(2, dtype=x.dtype), x[:4].view(2, 2), upper=False
    ).square().sum() + (x.view(2, 3) @ x.view(3, 2)).diagonal().sum() + torch.diag_embed(x[:2]).sum(),
    "batched products": lambda x: torch.bmm(x.view(1, 2, 3), x.view(1, 3, 2)).exp().sum() +
    torch.addmm(x.view(2, 3), x[:4].view(2, 2), x.view(2, 3)).square().sum() + x.dot(x.flip(0)),
    "looked up": lambda x: (x[torch.tensor([0, 0, 5, -1])] ** 2).sum() +
    x.view(2, 3)[torch.tensor([0, 1, 1]), torch.tensor([2, 0, 0])].exp().sum() +
    x.gather(0, torch.tensor([3, 3, 1])).exp().sum(),
    "put": lambda x: (torch.zeros(8, dtype=x.dtype).index_put((torch.tensor([1, 3, 3, 2, 0, 7]),),
                      x, accumulate=True) ** 2).sum() +
    torch.zeros(3, dtype=x.dtype).scatter_add(0, torch.tensor([0, 2, 2, 1, 0, 0]), x).exp().sum() +
    torch.eye(6, dtype=x.dtype).index_put((torch.arange(6), torch.arange(6)), x).exp().sum(),
    "constant": lambda x: x.sum() * 0 + 3,
    "what is not a number": lambda x: torch.where(torch.isnan(x.log()), x**2, x.log()).sum() +
    torch.nan_to_num(x.log(), 0.5, 1.0, -7.0).sum() + torch.where(torch.isinf(1 / x), x, 2 * x).sum(),
}  # fmt: skip


def ends(v):
    return v[:20].tanh().sum() + v[5:].sin().sum()


LONG = {  # of 120 numbers, most of them in loops
    "latent rows": lambda x: -0.5 * (x**2).sum() - torch.logaddexp(x[:1], x[20:]).sum(),
    "two columns": lambda x: -(x.view(60, 2) ** 2).sum() - (x.view(60, 2)[:, 0] *
                                                            x.view(60, 2)[:, 1].exp()).sum(),
    "transposed": lambda x: (x.view(2, 60).T @ torch.tensor([0.3, -1.0]).double()).tanh().sum(),
    "neighbours": lambda x: -((x[1:] - 0.9 * x[:-1]) ** 2).sum() - x[0] ** 2,
    "backwards": lambda x: -((x - 0.5 * x.flip(0)) ** 2).sum() - x[5:110:3].exp().sum(),
    "extremes": lambda x: torch.logsumexp(x[1:], 0) + x[2:].amax() + x[3:].amin() ** 2,
    "two levels": lambda x: ((x - x.mean()) ** 2 / (1 + x.var())).sum() + torch.softmax(x, 0)[3:].log().sum(),
    "data": lambda x: torch.distributions.Normal(x[0] + x[1] * TALL[:, 0], x[2].exp(), validate_args=False).log_prob(TALL[:, 1]).sum() - (x[3:] ** 2).sum(),
    "flags": lambda x: torch.where(FLAGS, x[0] * ROW, x[1] - ROW).tanh().sum() + (FLAGS * x[2]).sum(),
    "wide matrix": lambda x: torch.nn.functional.softplus(WIDE @ x[:40] + x[40]).sum() + (x**2).sum(),
    "narrow matrix": lambda x: (TALL @ x[7:9]).cos().sum(),
    "matrix of a few rows": lambda x: ((WIDE[:5].double() @ x[:40]) ** 2).sum(),
    "square matrix": lambda x: ((SQUARE @ x[:70]).tanh() * x[50:]).sum(),
    "its transpose": lambda x: (x[:70][None] @ SQUARE).tanh().sum(),
    "classes": lambda x: torch.log_softmax(WIDE @ x.view(40, 3), 1).gather(
        1, LABEL[:200, None]).sum(),
    "groups": lambda x: ((x[:7] * x[7])[GROUP] * ROW).exp().sum() - (x**2).sum(),
    "many groups": lambda x: (torch.tanh(x[:50])[MANY] * ROW + x[60 + GROUP]).sin().sum(),
    "columns of groups": lambda x: ((x[:14].view(7, 2)[GROUP] * TALL).sum(1)).tanh().sum(),
    "shared sums": lambda x: (torch.zeros(50, dtype=x.dtype).index_add(
        0, MANY[:100], x[:100]) ** 2).sum(),
    "joined": lambda x: (torch.cat([x[:60].exp(), x[60:]]) * torch.linspace(0, 1, 120)).sin().sum(),
    "sums of products": lambda x: (WIDE @ x[:40]).mean() ** 2 + (WIDE.T.double()[:30] @ x[:1].expand(
        200)).tanh().sum() + torch.where(x[0] > 2.5, (WIDE @ x[:40]).sum(), 0.0 * x[1]),
    "parts of parts": lambda x: ends(x[:40].view(10, 4).T.reshape(-1) * x[:40]),
    "overlapping parts": lambda x: (x[:80] * ROW[:80]).sin().sum() + x[40:].exp().sum() + x[50] ** 2,
    "of other coordinates": lambda x: LONG["overlapping parts"](0.1 * x.flip(0) + x.sum() / 100),
    "a mixture": lambda x: torch.logsumexp(
        torch.log_softmax(x[:3], 0) - (TALL[:, :1] - x[3:6]) ** 2 / x[6:9].exp(), -1).sum(),
    "running sums of columns": lambda x: (TALL * x[:2]).cumsum(1)[:, 1].tanh().sum(),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dim"), [*((name, 6) for name in SHORT), *((name, 120) for name in LONG)], ids=str
)
def test_value_and_gradient_are_those_of_autograd(name, dim):
    function = (SHORT if dim == 6 else LONG)[name]
    assert_same(Density(function, dim, torch.float64, 1), function, points(9, dim))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_those_of_pyro(name, dtype):
    with isolated(dtype):
        program = PROGRAMS[name].bound()
        density = Density(program.log_density, program.dim, dtype, 1)
        x = points(5, program.dim, dtype, 1.0)
        assert_same(density, program.log_density, x, 1e-11 if dtype == torch.float64 else 1e-4)


MODELS = {
    "O-ring": ORing,
    "mixture": lambda: GaussianMixture(2),
    "principal components": lambda: PPCA(2),
    "mixture of these": lambda: MixturePPCA(2, 1),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_are_written_as_c(name):
    problem = bind(MODELS[name](), None if name == "O-ring" else load_iris().data[:, :3])
    with isolated(torch.float64):
        program = problem.program
        density = Density(program.log_density, program.dim, torch.float64, 1)
        assert_same(density, program.log_density, points(4, program.dim, scale=0.3))


@pytest.mark.parametrize("threads", [1, 2])
def test_any_number_of_chains_and_threads(threads):
    """Chains fill lanes of eight and chunks of 64; each has the value it has alone."""
    function = LONG["groups"]
    density = Density(function, 120, torch.float64, threads)
    x = points(131, 120)
    alone = [density(row[None]) for row in x]
    for count in (1, 7, 8, 9, 63, 64, 65, 128, 131):
        value, gradient = density(x[:count])
        assert torch.equal(value, torch.cat([v for v, _ in alone[:count]]))
        assert torch.equal(gradient, torch.cat([g for _, g in alone[:count]]))


def test_threads_share_large_work_and_sum_in_one_order():
    rows = torch.tensor(RANDOM.normal(size=(40_000, 3)))

    def function(x):
        return -torch.nn.functional.softplus(rows @ x).sum()

    x = points(70, 3)
    one, two = (Density(function, 3, torch.float64, threads) for threads in (1, 2))
    assert_same(two, function, x[:2])
    for a, b in zip(one(x), two(x), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("length", [1000, 1001, 1015])
@pytest.mark.parametrize("columns", [3, 40])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_of_matrices_begin_at_lines_of_the_cache(length, columns, dtype):
    rows = torch.tensor(RANDOM.normal(size=(length, columns)), dtype=dtype)

    def function(x):
        return -torch.nn.functional.softplus(rows @ x).sum()

    density = Density(function, columns, dtype, 1)
    reals, _ = density._arrays
    assert all(array.ctypes.data % 64 == 0 for array in reals)
    assert max(map(len, reals)) == columns * (-(-length // 16) * 16)
    x = points(3, columns).to(dtype)
    assert_same(density, function, x, 1e-11 if dtype == torch.float64 else 1e-5)


def test_threads_read_much_data_together_and_little_each_for_itself():
    for rows, each in ((100_000, True), (1_000_000, False)):
        data = torch.ones(rows, 3, dtype=torch.float64).cumsum(0)
        density = Density(lambda x, data=data: -(data @ x).square().sum(), 3, torch.float64, 2)
        assert bool(density.native.single) == each


def test_what_is_not_a_number_stays_so():
    """A NaN in one chain is in its value, and in that of no other."""

    def function(x):
        return torch.maximum(x[0], x[1].log()) - x.clamp(min=0.1).square().sum()

    density = Density(function, 2, torch.float64, 1)
    x = torch.tensor([[0.5, 0.2], [0.5, -1.0], [torch.nan, 0.3], [-2.0, 1.0]], dtype=torch.float64)
    finite = [True, False, False, True]
    assert torch.isfinite(density(x)[0]).tolist() == finite


def test_terms_of_no_weight_add_nothing():
    def function(x):
        none = torch.where(x > 5, x, -torch.inf)
        return torch.logaddexp(none[0], none[1]).exp() + torch.logaddexp(none[0], x[1])

    density = Density(function, 2, torch.float64, 1)
    x = points(3, 2)
    torch.testing.assert_close(density(x)[0], x[:, 1], rtol=0, atol=1e-15)


# -- what is refused -------------------------------------------------------------------------------


def random(x):
    return (x + torch.rand(6)).sum()


def branches(x):
    return x.sum() if x[0] > 0 else x.prod()


def leaves_torch(x):
    return x.sum() * (3.0 if x.detach().numpy()[0] > 2.5 else 1.0)


def leaves_as_a_list(x):
    return x.sum() * (3.0 if x.tolist()[0] > 2.5 else 1.0)


def writes(x):
    y = x * 1
    view = y[:3]
    view += 1
    return y.sum()


REFUSED = {
    "random numbers": (random, 6, "draws random numbers"),
    "a branch": (branches, 6, "depends on values"),
    "an array": (leaves_torch, 6, "may depend on values"),
    "a list": (leaves_as_a_list, 6, "may depend on values"),
    "a shared write": (writes, 6, "writes to a tensor that others share"),
    "unknown operation": (
        lambda x: torch.special.i0(x).sum(),
        6,
        "not known to the code generator",
    ),
    "two long axes": (lambda x: torch.outer(x, x).exp().sum(), 200, "long ax"),
    "whole numbers": (lambda x: (x.relu().long() * x).sum(), 6, "numbers become"),
    "bits": (lambda x: ((x > 0).sum() & 2) * x.sum(), 6, "bits of numbers"),
    "some rows": (lambda x: x.view(3, 2).gather(1, torch.tensor([[1]])).sum(), 6, "some rows only"),
    "half precision": (lambda x: x.sum(), 6, "numbers are torch.float16"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_with_the_reason(name):
    function, dim, reason = REFUSED[name]
    dtype = torch.float16 if name == "half precision" else torch.float64
    with pytest.raises(Untraceable, match=reason):
        Density(function, dim, dtype, 1)


def test_few_evaluations_do_not_repay_much_code():
    function = LONG["classes"]
    with pytest.raises(Untraceable, match="longer than it saves"):
        Density(
            lambda x: sum(SHORT["functions"](x * k) for k in range(30)),
            6,
            torch.float64,
            1,
            calls=1,
        )
    Density(function, 120, torch.float64, 1, calls=100_000)


def test_a_wrong_formula_is_seen(monkeypatch):
    """The test of operations fails where the generator is sabotaged."""
    sine = elementwise.ELEMENTWISE["sin"]
    monkeypatch.setitem(elementwise.ELEMENTWISE, "tanh", sine)
    density = Density(SHORT["functions"], 6, torch.float64, 1)
    with pytest.raises(AssertionError):
        assert_same(density, SHORT["functions"], points(3, 6))


# -- the disk --------------------------------------------------------------------------------------

SOURCE = "#include <stdint.h>\nint64_t density(int64_t a) { return a + %d; }\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PPL_SUITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compilations(monkeypatch):
    done, real = [], compiler._compile

    def counted(*arguments):
        done.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(compiler, "_compile", counted)
    return done


def call(number):
    return compiler.load(SOURCE % number).density(1)


def test_a_library_is_compiled_once(folder, compilations):
    assert call(1) == call(1) == 2
    assert len(compilations) == 1
    assert call(2) == 3
    assert len(compilations) == 2
    assert folder.stat().st_mode & 0o077 == 0
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", ["truncated", "changed", "empty", "no note", "no library"])
def test_a_damaged_library_is_compiled_again(damage, folder, compilations, caplog):
    assert call(3) == 4
    (library,) = folder.glob("*.so")
    content = library.read_bytes()
    (note,) = folder.glob("*.sha256")
    library.unlink()  # a new file: the old one is still loaded
    if damage == "no note":
        library.write_bytes(content)
        note.unlink()
    elif damage != "no library":
        changed = {"truncated": content[:1000], "changed": content[:-1] + b"x", "empty": b""}
        library.write_bytes(changed[damage])
    with caplog.at_level(logging.WARNING, "inference"):
        assert call(3) == 4
    assert len(compilations) == 2
    told = damage in ("truncated", "changed", "empty")
    assert len(caplog.records) == told
    assert call(3) == 4
    assert len(compilations) == 2


def test_another_compiler_or_processor_finds_no_library_of_this(folder, compilations, monkeypatch):
    assert call(4) == 5
    monkeypatch.setattr(compiler, "_version", lambda program: "another")
    assert call(4) == 5
    monkeypatch.setattr(compiler, "_processor", lambda: "another")
    assert call(4) == 5
    assert len(compilations) == 3


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions are others here")
def test_a_folder_that_others_can_write_to_is_not_used(folder, compilations, caplog):
    folder.mkdir()
    folder.chmod(0o777)
    with caplog.at_level(logging.WARNING, "inference"):
        assert call(5) == call(5) == 6
    assert len(compilations) == 2
    assert "others can write" in caplog.text
    assert not list(folder.iterdir())


def test_a_full_disk_costs_only_the_next_process_time(folder, compilations, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiler.os, "replace", full)
    assert call(6) == call(6) == 7
    assert len(compilations) == 2
    assert not list(folder.iterdir())


def test_what_was_used_longest_ago_is_removed(folder, monkeypatch):
    assert call(7) == 8
    size = next(folder.glob("*.so")).stat().st_size
    monkeypatch.setattr(compiler, "_LARGEST", 2 * size + size // 2)
    for number in (8, 9, 10):
        assert call(number) == number + 1
    assert len(list(folder.glob("*.so"))) == len(list(folder.glob("*.sha256"))) == 2


def test_processes_that_compile_at_once_do_not_meet(folder):
    code = textwrap.dedent(f"""
        from inference.codegen import compiler
        assert compiler.load({SOURCE % 11!r}).density(1) == 12
    """)
    running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert len(list(folder.glob("*.so"))) == 1
    assert call(11) == 12


def test_a_compiler_that_fails_says_why_in_a_line(folder):
    with pytest.raises(CompilerError, match=r"failed: .*density\.c"):
        compiler.load("int density( {")
    with pytest.raises(CompilerError) as caught:
        compiler.load("#error of the source")
    assert "\n" not in str(caught.value)


def test_no_compiler_is_an_error_that_says_what_to_do(folder, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(CompilerError, match="install gcc, or name one by CC"):
        compiler.load(SOURCE % 12)


def test_a_library_has_the_function(folder):
    assert isinstance(compiler.load(SOURCE % 13), ctypes.CDLL)
