"""Every message of `topk_step_kl` and `TopKStepKLLoss` for bad input that is not one of `step_kl`'s."""

import pytest
import torch

from sod_kernels import BackendUnavailableError, SodWeighting, TopKStepKLLoss, topk_step_kl

S = torch.zeros(2, 3, 5)
LOG_PROBS = torch.tensor([0.4, 0.2]).log().expand(2, 3, 2).contiguous()
IDS = torch.tensor([1, 3]).expand(2, 3, 2).contiguous()
STEPS = torch.tensor([[0, 0, -1], [1, 1, 1]])
SAMPLED = torch.tensor([[1, 3, -100], [3, 1, 1]])
NAN = LOG_PROBS.clone()
NAN[1, 2, 0] = torch.nan

CASES = [
    ({"student_logits": S[0, 0]}, ValueError, r"student_logits has shape \(5,\); wanted \(N, V\)"),
    ({"vocab_size": 6}, ValueError, "vocab_size=6; wanted at most 5, the columns of student_logits"),
    ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
    ({"teacher_log_probs": [0.0]}, TypeError, "teacher_log_probs is list; wanted a tensor"),
    ({"teacher_log_probs": IDS}, TypeError, "teacher_log_probs has dtype torch.int64; wanted one of float64"),
    (
        {"teacher_log_probs": LOG_PROBS[0]},
        ValueError,
        r"teacher_log_probs has shape \(3, 2\); wanted \(2, 3, K\) with K of at least 1",
    ),
    ({"teacher_log_probs": LOG_PROBS[..., :0]}, ValueError, r"shape \(2, 3, 0\); wanted \(2, 3, K\)"),
    ({"teacher_log_probs": torch.zeros(())}, ValueError, r"shape \(\); wanted \(2, 3, K\)"),
    ({"teacher_log_probs": LOG_PROBS.to("meta")}, ValueError, "teacher_log_probs is on meta; wanted cpu"),
    ({"teacher_ids": IDS[..., :1]}, ValueError, r"teacher_ids has shape \(2, 3, 1\); wanted \(2, 3, 2\)"),
    ({"teacher_ids": LOG_PROBS}, TypeError, "teacher_ids has dtype torch.float32; wanted one of int64"),
    (
        {"teacher_ids": IDS + 2},
        ValueError,
        r"teacher_ids holds 5 at \[0, 0, 1\]; wanted ids up to 4, the student's columns, or negative ones",
    ),
    ({"vocab_size": 3}, ValueError, "teacher_ids holds 3"),
    ({"teacher_log_probs": NAN}, ValueError, r"teacher_log_probs holds nan at \[1, 2, 0\]; wanted log-prob"),
    (
        {"teacher_log_probs": LOG_PROBS + 2.0},
        ValueError,
        r"teacher_log_probs at \[0, 0\] add up to a probability of 4.433; wanted at most 1. .* not logits",
    ),
    ({"tail": "buckets"}, ValueError, "tail='buckets'; wanted one of bucket, .* Did you mean 'bucket'?"),
    ({"tail": None}, TypeError, "tail is NoneType; wanted one of bucket, renormalise, drop"),
    ({"sampled_ids": SAMPLED + 2}, ValueError, r"sampled_ids holds 5 at \[0, 1\]; wanted ids from 0 to 4"),
    ({"step_divergence": "abs_log_ratio"}, ValueError, "sampled tokens' log-probabilities; give sampled_ids"),
    (
        {"step_divergence": "abs_log_ratio", "sampled_ids": SAMPLED - 1},
        ValueError,
        r"needs the teacher's log-probability of the sampled token, and teacher_ids at \[0, 0\] lacks id 0",
    ),
    ({"step_ids": STEPS[0]}, ValueError, r"step_ids has shape \(3,\); wanted \(2, 3\)"),
    ({"divergence": "kl"}, ValueError, "divergence='kl'; wanted one of"),
    ({"weighting": SodWeighting}, TypeError, "weighting is the class SodWeighting"),
    ({"denominator": 0}, ValueError, "denominator=0; wanted a finite number above 0"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), CASES, ids=[f"{i}-{'-'.join(c[0])}" for i, c in enumerate(CASES)]
)
def test_bad_input(change, error, message):
    arguments = {
        "student_logits": S,
        "teacher_log_probs": LOG_PROBS,
        "teacher_ids": IDS,
        "step_ids": STEPS,
        "backend": "reference",
        **change,
    }
    with pytest.raises(error, match=f"^topk_step_kl: .*(?:{message})|^topk_step_kl: (?:{message})"):
        topk_step_kl(**arguments)


def test_a_negative_divergence_and_sod_weights_exclude_each_other():
    student, log_probs = torch.tensor([[0.1, 2.0]]), torch.tensor([[-0.1]])
    with pytest.raises(ValueError, match=r"^sod_weights: step_divergence holds -.*; wanted at least 0"):
        topk_step_kl(
            student,
            log_probs,
            torch.tensor([[0]]),
            tail="drop",
            weighting=SodWeighting(),
            backend="reference",
        )


def test_a_backend_that_cannot_run_is_named_with_the_function():
    arguments = (S.double(), LOG_PROBS, IDS)
    with pytest.raises(BackendUnavailableError, match=r"^topk_step_kl: backend='native' cannot run on 'cpu'"):
        topk_step_kl(*arguments, backend="native")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tail": "dropp"}, ValueError, "tail='dropp'; .* Did you mean 'drop'?"),
        ({"temperature": 0.0}, ValueError, "temperature=0.0; wanted a finite number above 0"),
        ({"weighting": torch.ones(2)}, TypeError, "weighting is a tensor, which fits one batch only"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'"),
    ],
)
def test_module_checks_its_options_when_made(options, error, message):
    with pytest.raises(error, match=f"^TopKStepKLLoss: .*(?:{message})|^TopKStepKLLoss: (?:{message})"):
        TopKStepKLLoss(**options)
