"""The front doors: each checks its arguments, dispatches, weighs and reduces."""

from sod_kernels.functional.hidden import linear_step_kl
from sod_kernels.functional.logits import step_kl
from sod_kernels.functional.topk import topk_step_kl

__all__ = ["linear_step_kl", "step_kl", "topk_step_kl"]
