"""The front doors: each checks its arguments, dispatches, weighs and reduces."""

from sod_kernels.functional.hidden import linear_step_kl
from sod_kernels.functional.hidden_topk import linear_topk_step_kl
from sod_kernels.functional.hidden_units import linear_unit_kl
from sod_kernels.functional.log_probs import TokenLogProbs, token_log_probs
from sod_kernels.functional.logits import step_kl
from sod_kernels.functional.topk import topk_step_kl
from sod_kernels.functional.unit_baselines import (
    CROSS_TOKENIZER_LOSSES,
    alm_unit_loss,
    gold_unit_loss,
    uld_unit_loss,
)
from sod_kernels.functional.units import unit_kl

__all__ = [
    "CROSS_TOKENIZER_LOSSES",
    "TokenLogProbs",
    "alm_unit_loss",
    "gold_unit_loss",
    "linear_step_kl",
    "linear_topk_step_kl",
    "linear_unit_kl",
    "step_kl",
    "token_log_probs",
    "topk_step_kl",
    "uld_unit_loss",
    "unit_kl",
]
