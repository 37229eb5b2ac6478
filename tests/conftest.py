"""Settings that have to stand before anything imports Triton."""

import os

import torch

# Without a GPU the Triton kernels run under Triton's interpreter, which is chosen when Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
