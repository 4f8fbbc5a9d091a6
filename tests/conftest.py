"""Tests use one thread: their models are so small that threads would only wait for one another."""

import torch

torch.set_num_threads(1)
