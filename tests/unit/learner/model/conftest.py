"""One rank for the tests of a process: DeepSpeed keeps the group that it met first, also beyond its end."""

import pytest
import torch
from support.ports import free_port

from learner.ranks.trainer import join_ranks


@pytest.fixture(scope="session")
def ranks():
    join_ranks(0, 1, ("127.0.0.1", free_port()), "cpu", 60)
    yield
    torch.distributed.destroy_process_group()
