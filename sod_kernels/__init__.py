"""Fused, step-aware distillation losses; needs torch and nothing else.

out = step_kl(student_logits, teacher_logits, steps_from_mask(response_mask), weighting=SodWeighting())
out.loss.backward()
"""

from sod_kernels._dispatch import BackendStatus, BackendUnavailableError, backends
from sod_kernels.alignment import AlignmentError, align_units
from sod_kernels.functional import (
    CROSS_TOKENIZER_LOSSES,
    TokenLogProbs,
    alm_unit_loss,
    gold_unit_loss,
    linear_step_kl,
    linear_topk_step_kl,
    linear_unit_kl,
    step_kl,
    token_log_probs,
    topk_step_kl,
    uld_unit_loss,
    unit_kl,
)
from sod_kernels.linear.policy import PolicyGradient
from sod_kernels.linear_module import LinearStepKLLoss, LinearTopKStepKLLoss, LinearUnitKLLoss
from sod_kernels.modules import StepKLLoss, TopKStepKLLoss
from sod_kernels.segments import step_means, steps_from_mask
from sod_kernels.token_bytes import TokenBytes
from sod_kernels.tokenizer_bytes import token_bytes
from sod_kernels.types import StepKLOutput, StepStatistics
from sod_kernels.unit_types import UnitKLOutput
from sod_kernels.units import Units, VocabMap
from sod_kernels.vocab_report import SampleCoverage, VocabReport, vocab_report
from sod_kernels.weighting import SodWeighting, TurnWeighting, sod_weights, tdur_weights

__version__ = "0.1.0"

__all__ = [
    "CROSS_TOKENIZER_LOSSES",
    "AlignmentError",
    "BackendStatus",
    "BackendUnavailableError",
    "LinearStepKLLoss",
    "LinearTopKStepKLLoss",
    "LinearUnitKLLoss",
    "PolicyGradient",
    "SampleCoverage",
    "SodWeighting",
    "StepKLLoss",
    "StepKLOutput",
    "StepStatistics",
    "TokenBytes",
    "TokenLogProbs",
    "TopKStepKLLoss",
    "TurnWeighting",
    "UnitKLOutput",
    "Units",
    "VocabMap",
    "VocabReport",
    "__version__",
    "align_units",
    "alm_unit_loss",
    "backends",
    "gold_unit_loss",
    "linear_step_kl",
    "linear_topk_step_kl",
    "linear_unit_kl",
    "sod_weights",
    "step_kl",
    "step_means",
    "steps_from_mask",
    "tdur_weights",
    "token_bytes",
    "token_log_probs",
    "topk_step_kl",
    "uld_unit_loss",
    "unit_kl",
    "vocab_report",
]
