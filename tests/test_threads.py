"""Work shared among threads."""

import threading
import time

import pytest
import torch

from ppl_models.threads import allowed, each, one_in_torch


def test_results_are_in_order_whoever_makes_them():
    met = threading.Barrier(2)

    def function(i):
        if i < 2:
            met.wait(60)  # two threads are here at once
        return i * i, threading.get_ident()

    results = each(function, 20, 2)
    assert [square for square, _ in results] == [i * i for i in range(20)]
    assert len({who for _, who in results[:2]}) == 2
    assert each(function, 0, 2) == []


@pytest.mark.parametrize("bad", [0, 5])
def test_what_fails_is_raised_here(bad):
    def function(i):
        if i == bad:
            raise ValueError(f"number {i}")
        return i

    with pytest.raises(ValueError, match=f"number {bad}"):
        each(function, 6, 2)
    assert each(lambda i: i, 6, 2) == list(range(6))


def test_after_an_error_nothing_more_is_begun():
    begun = []

    def function(i):
        begun.append(i)
        if i == 0:
            raise KeyboardInterrupt
        time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        each(function, 1000, 2)
    assert len(begun) < 100


def test_work_within_work_ends():
    assert each(lambda i: sum(each(lambda j: i + j, 8, 4)), 8, 4) == [8 * i + 28 for i in range(8)]


def test_small_problems_leave_threads_to_others():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_in_torch(True):
            assert (torch.get_num_threads(), allowed()) == (1, 3)
        assert (torch.get_num_threads(), allowed()) == (3, 3)
    finally:
        torch.set_num_threads(before)
