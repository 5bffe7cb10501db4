"""What every test module may ask for."""

import pytest
import torch


@pytest.fixture(scope="module")  # so that fixtures of a module train with as many threads as its tests
def one_thread():
    """Tiny models on one thread: two would wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
