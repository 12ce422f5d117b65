"""What every test shares: one thread per process."""

import torch

torch.set_num_threads(1)
