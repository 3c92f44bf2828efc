"""Graphs keep their values when what depends on no input is computed once."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from inference.simplify import simplified

X = torch.linspace(-1.0, 2.0, 6, dtype=torch.float64).reshape(2, 3)


def operations(graph):
    return sum(node.op == "call_function" for node in graph.graph.nodes)


def checked(function):
    """The simplified graph, whose values are those of the function, twice and at other points."""
    graph = make_fx(function)(X.clone())
    before = operations(graph)
    after = simplified(graph)
    for point in (X, -2 * X, X + 1):
        torch.testing.assert_close(after(point), function(point), rtol=0, atol=0)
    return before, operations(after)


def test_constants_are_computed_once():
    fixed = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def function(x):
        ones = torch.ones_like(x) * fixed.log().exp()
        return (x * ones).sum() + torch.zeros(()) + fixed.sum()

    before, after = checked(function)
    assert before > 7
    assert after == 3  # a product, a sum, and the sum with a constant


def test_idle_operations_go():
    def function(x):
        y = x.neg().neg().view(2, 3).expand(2, 3) + torch.zeros(2, 3, dtype=torch.float64)
        return y.sum(1).unsqueeze(-1).sum(-1)

    assert checked(function)[1] == 1


def test_operations_that_change_shape_or_dtype_stay():
    zeros = torch.zeros(4, 2, 3, dtype=torch.float64)
    assert checked(lambda x: x + zeros)[1] == 1
    assert checked(lambda x: x.float() + torch.zeros(2, 3, dtype=torch.float64))[1] == 2


def test_a_constant_that_is_written_into_is_left_alone():
    store = torch.zeros(2, 3, dtype=torch.float64)

    def function(x):
        fresh = store.clone()
        return fresh.add_(x) * 2

    checked(function)
    assert not store.any()


def test_constants_made_by_writing_are_folded():
    def function(x):
        return x * torch.empty_like(x).fill_(2.0).sub_(0.5)

    assert checked(function) == (4, 1)
