"""One thread per test process, one import of ArviZ, and what needs a GPU."""

import arviz  # noqa: F401  # the main process first: its first import of a day writes a file
import pytest
import torch

torch.set_num_threads(1)


BEGINNINGS = {}


@pytest.fixture(autouse=True)
def _numbers_do_not_depend_on_the_order_of_tests(request):
    """A module's ``RNG`` begins anew for each of its tests."""
    rng = getattr(request.module, "RNG", None)
    if rng is not None:
        rng.bit_generator.state = BEGINNINGS.setdefault(
            request.module.__name__, rng.bit_generator.state
        )


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return torch.device("cuda")
