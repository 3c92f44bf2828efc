"""One thread per test process, one import of ArviZ, and what needs a GPU."""

import arviz  # noqa: F401  # the main process first: its first import of a day writes a file
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device here")
    return torch.device("cuda")
