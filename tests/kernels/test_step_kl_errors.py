"""Every message of `step_kl` and `StepKLLoss` for bad input."""

import pytest
import torch

from sod_kernels import SodWeighting, StepKLLoss, step_kl

S = torch.zeros(2, 3, 5)
IDS = torch.tensor([[0, 0, -1], [1, 1, 1]])
SAMPLED = torch.tensor([[0, 4, -100], [1, 2, 3]])

CASES = [
    # logits
    ({"student_logits": [[1.0]]}, TypeError, "student_logits is list; wanted a tensor"),
    (
        {"student_logits": S.long()},
        TypeError,
        "student_logits has dtype torch.int64; wanted one of float64, float32",
    ),
    (
        {"student_logits": S[0, 0]},
        ValueError,
        r"student_logits has shape \(5,\); wanted \(N, V\) or \(B, T, V\)",
    ),
    (
        {"teacher_logits": S.double()},
        TypeError,
        "teacher_logits has dtype torch.float64; wanted one of float32",
    ),
    ({"teacher_logits": S.to("meta")}, ValueError, "teacher_logits is on meta; wanted cpu"),
    ({"teacher_logits": S[:1]}, ValueError, r"teacher_logits has shape \(1, 3, 5\); wanted \(2, 3\) before"),
    (
        {"teacher_logits": torch.zeros(())},
        ValueError,
        r"teacher_logits has shape \(\); wanted \(2, 3\) before",
    ),
    ({"teacher_logits": S[..., :4]}, ValueError, "has 5 columns and teacher_logits 4; give vocab_size="),
    (
        {"student_logits": S[..., :0], "teacher_logits": S[..., :0]},
        ValueError,
        "vocab_size=0; wanted at least 1",
    ),
    ({"vocab_size": 6}, ValueError, "vocab_size=6; wanted at most 5"),
    ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
    ({"vocab_size": 5.0}, TypeError, "vocab_size is float; wanted an integer"),
    # divergence
    ({"divergence": "reverse-kl"}, ValueError, "divergence='reverse-kl'; .* Did you mean 'reverse_kl'?"),
    ({"divergence": 3}, TypeError, "divergence is int; wanted one of reverse_kl, forward_kl, jsd"),
    ({"divergence": "zzz"}, ValueError, "divergence='zzz'; wanted one of reverse_kl, forward_kl, jsd.$"),
    ({"beta": 0.5}, ValueError, "beta=0.5 with divergence='reverse_kl', which has no mixture"),
    ({"divergence": "jsd", "beta": 1.5}, ValueError, "beta=1.5; wanted the teacher's weight, from 0 to 1"),
    ({"divergence": "jsd", "beta": -0.1}, ValueError, "beta=-0.1; wanted a finite number of at least 0"),
    ({"divergence": "jsd", "beta": "x"}, TypeError, "beta is str; wanted a Python number"),
    ({"temperature": 0.0}, ValueError, "temperature=0.0; wanted a finite number above 0"),
    ({"temperature": float("nan")}, ValueError, "temperature=nan"),
    ({"temperature": float("inf")}, ValueError, "temperature=inf"),
    ({"temperature": torch.ones(())}, TypeError, "temperature is Tensor; wanted a Python number"),
    ({"min_log_prob": 0.0}, ValueError, "min_log_prob=0.0; wanted a log-probability below 0"),
    ({"min_log_prob": float("-inf")}, ValueError, "min_log_prob=-inf; wanted a finite number"),
    ({"min_log_prob": -9.0, "divergence": "jsd"}, ValueError, "min_log_prob=-9.0 with divergence='jsd'"),
    # steps
    ({"response_mask": IDS >= 0}, ValueError, "got both step_ids and response_mask; wanted one"),
    ({"step_ids": IDS[0]}, ValueError, r"step_ids has shape \(3,\); wanted \(2, 3\)"),
    ({"step_ids": IDS.float()}, TypeError, "step_ids has dtype torch.float32; wanted one of int64"),
    ({"step_ids": IDS.to(torch.uint8)}, TypeError, "step_ids has dtype torch.uint8"),
    ({"step_ids": IDS.to("meta")}, ValueError, "step_ids is on meta; wanted cpu"),
    ({"step_ids": IDS - 1}, ValueError, r"step_ids holds -2 at \[0, 2\]; wanted ids from -1 to 0"),
    ({"num_steps": 1}, ValueError, r"step_ids holds 1 at \[1, 0\]; wanted ids from -1 to 0"),
    ({"num_steps": -1}, ValueError, "num_steps=-1; wanted at least 0"),
    ({"num_steps": 2.5}, TypeError, "num_steps is float; wanted an integer"),
    ({"step_ids": IDS.clamp(max=0)}, ValueError, "step_ids has step 0 in more than one row"),
    ({"step_ids": None, "response_mask": IDS}, ValueError, "response_mask holds -1; wanted only 0 and 1"),
    (
        {"step_ids": None, "response_mask": IDS[0]},
        ValueError,
        r"response_mask holds|response_mask has shape \(3,\)",
    ),
    ({"step_ids": None, "response_mask": [1]}, TypeError, "response_mask is list; wanted a tensor"),
    ({"step_ids": None, "num_steps": 5}, ValueError, "one step per row tells 2 steps but num_steps tells 5"),
    ({"step_trajectory": torch.zeros(3)}, TypeError, "step_trajectory has dtype torch.float32"),
    ({"step_trajectory": IDS}, ValueError, r"step_trajectory has shape \(2, 3\); wanted \(S,\)"),
    (
        {"step_trajectory": torch.zeros(3, dtype=torch.int64), "num_steps": 2},
        ValueError,
        "step_trajectory tells 3 steps but num_steps tells 2",
    ),
    # sampled ids
    ({"sampled_ids": SAMPLED[0]}, ValueError, r"sampled_ids has shape \(3,\); wanted \(2, 3\)"),
    ({"sampled_ids": SAMPLED.float()}, TypeError, "sampled_ids has dtype torch.float32"),
    ({"sampled_ids": SAMPLED + 1}, ValueError, r"sampled_ids holds 5 at \[0, 1\]; wanted ids from 0 to 4"),
    ({"sampled_ids": SAMPLED - 1}, ValueError, "sampled_ids holds -1"),
    ({"sampled_ids": SAMPLED, "vocab_size": 4}, ValueError, "sampled_ids holds 4"),
    (
        {"step_divergence": "abs_log_ratio"},
        ValueError,
        "compares the sampled tokens' log-probabilities; give sampled_ids",
    ),
    # weighting, loss, backend
    ({"step_divergence": "kll"}, ValueError, "step_divergence='kll'; .* Did you mean 'kl'?"),
    ({"weighting": "sod"}, TypeError, "weighting is str; wanted None, SodWeighting"),
    ({"weighting": SodWeighting}, TypeError, "weighting is the class SodWeighting; wanted"),
    ({"weighting": torch.ones(2, 1)}, ValueError, r"weighting's result has shape \(2, 1\); wanted \(2,\)"),
    ({"weighting": torch.ones(1)}, ValueError, r"step_ids holds 1 at \[1, 0\]"),
    (
        {"weighting": torch.ones(3), "num_steps": 2},
        ValueError,
        "weighting tells 3 steps but num_steps tells 2",
    ),
    ({"weighting": torch.ones(2, dtype=torch.int64)}, TypeError, "weighting's result has dtype torch.int64"),
    ({"weighting": lambda s: [1.0, 1.0]}, TypeError, "weighting's result is list; wanted a tensor"),
    (
        {"weighting": lambda s: s.divergence[:1]},
        ValueError,
        r"weighting's result has shape \(1,\); wanted \(2,\)",
    ),
    ({"token_weights": torch.ones(3)}, ValueError, r"token_weights has shape \(3,\); wanted \(2, 3\)"),
    ({"token_weights": IDS}, TypeError, "token_weights has dtype torch.int64"),
    ({"reduction": "token-mean"}, ValueError, "reduction='token-mean'; .* Did you mean 'token_mean'?"),
    (
        {"reduction": "sum", "denominator": 3},
        ValueError,
        "denominator= with reduction='sum', which divides by nothing",
    ),
    ({"reduction": "none", "denominator": 3}, ValueError, "denominator= with reduction='none'"),
    ({"denominator": 0}, ValueError, "denominator=0; wanted a finite number above 0"),
    ({"denominator": torch.tensor(0.0)}, ValueError, "denominator=0.0; wanted a number above 0"),
    ({"denominator": torch.ones(1)}, ValueError, r"denominator has shape \(1,\); wanted \(\)"),
    ({"denominator": "3"}, TypeError, "denominator is str; wanted a Python number"),
    ({"backend": "trition"}, ValueError, "backend='trition'; .* Did you mean 'triton'?"),
]


@pytest.mark.parametrize(
    ("change", "error", "message"), CASES, ids=[f"{i}-{'-'.join(c[0])}" for i, c in enumerate(CASES)]
)
def test_bad_input(change, error, message):
    arguments = {"student_logits": S, "teacher_logits": S, "step_ids": IDS, **change}
    with pytest.raises(error, match=f"^step_kl: .*(?:{message})|^step_kl: (?:{message})"):
        step_kl(**arguments)


OPTIONS = (
    "divergence",
    "beta",
    "temperature",
    "min_log_prob",
    "step_divergence",
    "weighting",
    "reduction",
    "backend",
)
OF_MODULE = [
    case
    for case in CASES
    if set(case[0]) <= set(OPTIONS) and "result" not in case[2] and "give sampled" not in case[2]
]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        *((c, e, m) for c, e, m in OF_MODULE if not isinstance(c.get("weighting"), torch.Tensor)),
        ({"weighting": torch.ones(2)}, TypeError, "weighting is a tensor, which fits one batch only"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
    ],
)
def test_module_checks_its_options_when_made(change, error, message):
    with pytest.raises(error, match=f"^StepKLLoss: .*(?:{message})|^StepKLLoss: (?:{message})"):
        StepKLLoss(**change)
