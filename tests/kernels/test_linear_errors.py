"""Every message of `linear_step_kl`, `PolicyGradient` and `LinearStepKLLoss` for bad input."""

import pytest
import torch

from sod_kernels import LinearStepKLLoss, PolicyGradient, SodWeighting, linear_step_kl
from sod_kernels._checks import hidden as checks

IDS = torch.tensor([0, 0, -1, 1])
H, W = torch.zeros(4, 3), torch.zeros(5, 3)
TEACHER_H, TEACHER_W = torch.zeros(4, 2, dtype=torch.bfloat16), torch.zeros(5, 2, dtype=torch.bfloat16)
SAMPLED = torch.tensor([0, 4, -100, 1])
POLICY = PolicyGradient(advantages=torch.zeros(4), old_log_probs=torch.zeros(4))
REFERENCE = {"reference_hidden": H, "reference_weight": W}

CASES = [
    # heads
    ({"student_hidden": [1.0]}, TypeError, "student_hidden is list; wanted a tensor"),
    ({"student_hidden": H.long()}, TypeError, "student_hidden has dtype torch.int64; wanted one of float64"),
    (
        {"student_hidden": H[0]},
        ValueError,
        r"student_hidden has shape \(3,\); wanted \(N, H\) or \(B, T, H\)",
    ),
    ({"teacher_hidden": None}, TypeError, "teacher_hidden is NoneType; wanted a tensor"),
    (
        {"teacher_hidden": TEACHER_H[:3]},
        ValueError,
        r"teacher_hidden has shape \(3, 2\); wanted \(4,\) before",
    ),
    ({"teacher_hidden": torch.zeros(())}, ValueError, r"teacher_hidden has shape \(\); wanted \(4,\) before"),
    ({"teacher_hidden": TEACHER_H.to("meta")}, ValueError, "teacher_hidden is on meta; wanted cpu"),
    (
        {"student_weight": W.double()},
        TypeError,
        "student_weight has dtype torch.float64; wanted one of float32",
    ),
    (
        {"student_weight": W[0]},
        ValueError,
        r"student_weight has shape \(3,\); wanted \(V, 3\) for student_hidden",
    ),
    (
        {"student_weight": W.T},
        ValueError,
        r"student_weight has shape \(3, 5\); wanted \(V, 3\) .* torch.nn.Linear",
    ),
    (
        {"student_hidden": H[:, :0], "student_weight": W[:, :0]},
        ValueError,
        r"student_weight has shape \(5, 0\); .* a hidden size of at least 1",
    ),
    ({"student_bias": torch.zeros(4)}, ValueError, r"student_bias has shape \(4,\); wanted \(5,\)"),
    (
        {"teacher_bias": torch.zeros(5)},
        TypeError,
        "teacher_bias has dtype torch.float32; wanted one of bfloat16",
    ),
    (
        {"student_weight": W[:4]},
        ValueError,
        "unequal numbers of rows: student_weight 4, teacher_weight 5; give vocab_size=",
    ),
    ({"vocab_size": 6}, ValueError, "vocab_size=6; wanted at most 5, the fewest rows of student_weight 5"),
    ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
    ({"student_logit_scale": 0.0}, ValueError, "student_logit_scale=0.0; wanted a finite number above 0"),
    ({"teacher_logit_scale": "1"}, TypeError, "teacher_logit_scale is str; wanted a Python number"),
    ({"student_softcap": -1.0}, ValueError, "student_softcap=-1.0; wanted a finite number above 0"),
    ({"teacher_softcap": float("inf")}, ValueError, "teacher_softcap=inf; wanted a finite number above 0"),
    # reference
    (
        {"reference_hidden": H},
        ValueError,
        "got reference_hidden without reference_weight; wanted both or neither",
    ),
    (
        {"reference_weight": W},
        ValueError,
        "got reference_weight without reference_hidden; wanted both or neither",
    ),
    (
        {"reference_bias": W[:, 0]},
        ValueError,
        "got reference_bias without reference_hidden and reference_weight",
    ),
    ({"reference_softcap": 2.0}, ValueError, "got reference_softcap without .* Give those, or leave it out"),
    ({"reference_logit_scale": 2.0}, ValueError, "got reference_logit_scale without reference_hidden"),
    (REFERENCE | {"reference_logit_scale": -2.0}, ValueError, "reference_logit_scale=-2.0; wanted a finite"),
    (
        REFERENCE | {"reference_weight": W[:, :2]},
        ValueError,
        r"reference_weight has shape \(5, 2\); wanted \(V, 3\)",
    ),
    # mode
    ({"reduction": "none"}, ValueError, "reduction='none' in a single sweep, .* Use single_sweep=False"),
    ({"single_sweep": 1}, TypeError, "single_sweep is int; wanted True or False"),
    ({"chunk_size": 0}, ValueError, "chunk_size=0; wanted at least 1"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size is float; wanted an integer"),
    ({"kl_coefficient": -1.0}, ValueError, "kl_coefficient=-1.0; wanted a finite number of at least 0"),
    ({"entropy_coefficient": float("nan")}, ValueError, "entropy_coefficient=nan; wanted a finite number"),
    # policy
    (
        {"policy_gradient": 3.0, "sampled_ids": SAMPLED},
        TypeError,
        "policy_gradient is float; wanted None or a Poli",
    ),
    ({"policy_gradient": POLICY}, ValueError, "policy_gradient without sampled_ids, .* Give sampled_ids"),
    (
        {
            "policy_gradient": PolicyGradient(advantages=torch.zeros(3), old_log_probs=torch.zeros(3)),
            "sampled_ids": SAMPLED,
        },
        ValueError,
        r"policy_gradient.advantages has shape \(3,\); wanted \(4,\)",
    ),
    # what step_kl refuses too
    ({"divergence": "reverse-kl"}, ValueError, "divergence='reverse-kl'; .* Did you mean 'reverse_kl'?"),
    ({"temperature": 0.0}, ValueError, "temperature=0.0; wanted a finite number above 0"),
    ({"reduction": "mean"}, ValueError, "reduction='mean'; wanted one of"),
    (
        {"step_divergence": "abs_log_ratio"},
        ValueError,
        "step_divergence='abs_log_ratio' compares the sampled",
    ),
    ({"sampled_ids": SAMPLED + 1}, ValueError, r"sampled_ids holds 5 at \[1\]; wanted ids from 0 to 4"),
    ({"step_ids": IDS[:3]}, ValueError, r"step_ids has shape \(3,\); wanted \(4,\)"),
    ({"step_ids": IDS, "response_mask": IDS}, ValueError, "got both step_ids and response_mask; wanted one"),
    ({"weighting": SodWeighting}, TypeError, "weighting is the class SodWeighting"),
    ({"weighting": torch.zeros(2, dtype=torch.int64)}, TypeError, "weighting's result has dtype torch.int64"),
    ({"weighting": lambda statistics: torch.ones(3)}, ValueError, r"weighting's result has shape \(3,\)"),
    ({"token_weights": torch.ones(3)}, ValueError, r"token_weights has shape \(3,\); wanted \(4,\)"),
    ({"denominator": 0.0}, ValueError, "denominator=0.0; wanted a finite number above 0"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CASES)
def test_bad_input(changes, error, message):
    good = {
        "student_hidden": H,
        "student_weight": W,
        "teacher_hidden": TEACHER_H,
        "teacher_weight": TEACHER_W,
        "step_ids": IDS,
    }
    linear_step_kl(**good)
    with pytest.raises(error, match=f"^linear_step_kl: .*{message}"):
        linear_step_kl(**good | changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"advantages": [1.0]}, TypeError, "advantages is list; wanted a tensor"),
        ({"advantages": torch.zeros(4).long()}, TypeError, "advantages has dtype torch.int64"),
        ({"old_log_probs": torch.zeros(3)}, ValueError, r"old_log_probs has shape \(3,\); wanted \(4,\)"),
        ({"clip_low": 1.5}, ValueError, "clip_low=1.5; wanted at most 1, since no ratio lies below 0"),
        ({"clip_low": -0.1}, ValueError, "clip_low=-0.1; wanted a finite number of at least 0"),
        ({"clip_high": -0.1}, ValueError, "clip_high=-0.1; wanted a finite number of at least 0"),
        ({"dual_clip": 1.0}, ValueError, "dual_clip=1.0; wanted a finite number above 1"),
        ({"dual_clip": "3"}, TypeError, "dual_clip is str; wanted a Python number"),
    ],
)
def test_bad_policy(changes, error, message):
    with pytest.raises(error, match=f"^PolicyGradient: {message}"):
        PolicyGradient(**{"advantages": torch.zeros(4), "old_log_probs": torch.zeros(4)} | changes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"student_softcap": 0.0}, ValueError, "student_softcap=0.0; wanted a finite number above 0"),
        ({"reference_logit_scale": -1.0}, ValueError, "reference_logit_scale=-1.0"),
        ({"reduction": "none"}, ValueError, "reduction='none' in a single sweep"),
        ({"kl_coefficient": "1"}, TypeError, "kl_coefficient is str"),
        ({"divergence": "kl"}, ValueError, "divergence='kl'; wanted one of"),
        ({"backend": "cuda"}, ValueError, "backend='cuda'; wanted one of"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
        ({"weighting": torch.ones(2)}, TypeError, "weighting is a tensor, which fits one batch only"),
    ],
)
def test_bad_module_options(options, error, message):
    with pytest.raises(error, match=f"^LinearStepKLLoss: {message}"):
        LinearStepKLLoss(**options)


def test_ids_on_the_device_are_refused_in_compiled_code_and_capture(monkeypatch):
    on_device = torch.zeros(3, dtype=torch.int64, device="meta")
    checks.check_may_plan("linear_step_kl", on_device)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    checks.check_may_plan("linear_step_kl", IDS)
    with pytest.raises(
        ValueError, match=r"linear_step_kl: step_ids are on meta, .* Give step_ids .* on the CPU"
    ):
        checks.check_may_plan("linear_step_kl", on_device)
