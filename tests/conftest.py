"""One thread for every test: repeatable sums, and no contention between test processes."""

import torch

torch.set_num_threads(1)
