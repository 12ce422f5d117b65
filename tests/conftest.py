"""What every test shares: one thread per process, and no process group that a test leaves behind for the next."""

import pytest
import torch
import torch.distributed as dist

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_process_group_is_left():
    yield
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        pytest.fail("this test joined a process group and did not leave it: run it in processes of its own")
