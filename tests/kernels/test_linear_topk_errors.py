"""Every message of `linear_topk_step_kl` and `LinearTopKStepKLLoss` for bad input."""

import inspect

import pytest
import torch
from test_linear_topk import make_batch
from topk_inputs import TAILS

from sod_kernels import (
    BackendUnavailableError,
    LinearTopKStepKLLoss,
    PolicyGradient,
    SodWeighting,
    linear_topk_step_kl,
)

STEPS = torch.tensor([0, 0, -1, 1])
H, W = torch.zeros(4, 3), torch.zeros(5, 3)
LOG_PROBS = torch.tensor([0.4, 0.2]).log().expand(4, 2).contiguous()
IDS = torch.tensor([1, 3]).expand(4, 2).contiguous()
SAMPLED = torch.tensor([1, 3, -100, 1])
NAN = LOG_PROBS.clone()
NAN[3, 0] = torch.nan
POLICY = PolicyGradient(advantages=torch.zeros(4), old_log_probs=torch.zeros(4))

CASES = [
    # the head
    ({"student_hidden": [1.0]}, TypeError, "student_hidden is list; wanted a tensor"),
    ({"student_hidden": H[0]}, ValueError, r"student_hidden has shape \(3,\); wanted \(N, H\) or \(B, T, H"),
    ({"student_weight": W.T}, ValueError, r"student_weight has shape \(3, 5\); wanted \(V, 3\)"),
    ({"student_weight": W.double()}, TypeError, "student_weight has dtype torch.float64"),
    ({"student_bias": torch.zeros(4)}, ValueError, r"student_bias has shape \(4,\); wanted \(5,\)"),
    ({"student_logit_scale": 0.0}, ValueError, "student_logit_scale=0.0; wanted a finite number above 0"),
    ({"student_softcap": -1.0}, ValueError, "student_softcap=-1.0; wanted a finite number above 0"),
    ({"vocab_size": 6}, ValueError, "vocab_size=6; wanted at most 5, the fewest rows of student_weight 5"),
    ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
    # the lists
    ({"teacher_log_probs": [0.0]}, TypeError, "teacher_log_probs is list; wanted a tensor"),
    (
        {"teacher_log_probs": LOG_PROBS[0]},
        ValueError,
        r"teacher_log_probs has shape \(2,\); wanted \(4, K\) .* shape of student_hidden and one entry",
    ),
    ({"teacher_log_probs": LOG_PROBS[:, :0]}, ValueError, r"shape \(4, 0\); wanted \(4, K\)"),
    ({"teacher_log_probs": LOG_PROBS.to("meta")}, ValueError, "teacher_log_probs is on meta; wanted cpu"),
    ({"teacher_ids": IDS[:, :1]}, ValueError, r"teacher_ids has shape \(4, 1\); wanted \(4, 2\)"),
    ({"teacher_ids": IDS + 2}, ValueError, r"teacher_ids holds 5 at \[0, 1\]; wanted ids up to 4"),
    ({"vocab_size": 3}, ValueError, "teacher_ids holds 3"),
    ({"teacher_log_probs": NAN}, ValueError, r"teacher_log_probs holds nan at \[3, 0\]; wanted log-probabi"),
    ({"teacher_log_probs": LOG_PROBS + 2.0}, ValueError, "add up to a probability of 4.433; wanted at most"),
    ({"tail": "buckets"}, ValueError, "tail='buckets'; wanted one of bucket, .* Did you mean 'bucket'?"),
    ({"sampled_ids": SAMPLED + 2}, ValueError, r"sampled_ids holds 5 at \[1\]; wanted ids from 0 to 4"),
    ({"step_divergence": "abs_log_ratio"}, ValueError, "sampled tokens' log-probabilities; give sampled_ids"),
    (
        {"step_divergence": "abs_log_ratio", "sampled_ids": SAMPLED - 1},
        ValueError,
        r"teacher_ids at \[0\] lacks id 0. Append it",
    ),
    # the mode
    ({"reduction": "none"}, ValueError, "reduction='none' in a single sweep, .* Use single_sweep=False"),
    ({"single_sweep": 1}, TypeError, "single_sweep is int; wanted True or False"),
    ({"chunk_size": 0}, ValueError, "chunk_size=0; wanted at least 1"),
    ({"kl_coefficient": -1.0}, ValueError, "kl_coefficient=-1.0; wanted a finite number of at least 0"),
    ({"entropy_coefficient": float("nan")}, ValueError, "entropy_coefficient=nan; wanted a finite number"),
    ({"policy_gradient": POLICY}, ValueError, "policy_gradient without sampled_ids, .* Give sampled_ids"),
    ({"policy_gradient": 3.0, "sampled_ids": SAMPLED}, TypeError, "policy_gradient is float; wanted None or"),
    # what every function of the family refuses
    ({"divergence": "kl"}, ValueError, "divergence='kl'; wanted one of"),
    ({"beta": 0.5}, ValueError, "beta=0.5 with divergence='reverse_kl', which has no mixture"),
    ({"temperature": 0.0}, ValueError, "temperature=0.0; wanted a finite number above 0"),
    ({"reduction": "mean"}, ValueError, "reduction='mean'; wanted one of"),
    ({"step_ids": STEPS[:3]}, ValueError, r"step_ids has shape \(3,\); wanted \(4,\)"),
    ({"step_ids": STEPS, "response_mask": STEPS}, ValueError, "got both step_ids and response_mask"),
    ({"weighting": SodWeighting}, TypeError, "weighting is the class SodWeighting"),
    ({"weighting": torch.zeros(2, dtype=torch.int64)}, TypeError, "weighting's result has dtype torch.int64"),
    ({"weighting": lambda statistics: torch.ones(3)}, ValueError, r"weighting's result has shape \(3,\)"),
    ({"token_weights": torch.ones(3)}, ValueError, r"token_weights has shape \(3,\); wanted \(4,\)"),
    ({"denominator": 0.0}, ValueError, "denominator=0.0; wanted a finite number above 0"),
    ({"backend": "cuda"}, ValueError, "backend='cuda'; wanted one of"),
]


@pytest.mark.parametrize(("changes", "error", "message"), CASES)
def test_bad_input(changes, error, message):
    good = {
        "student_hidden": H,
        "student_weight": W,
        "teacher_log_probs": LOG_PROBS,
        "teacher_ids": IDS,
        "step_ids": STEPS,
    }
    linear_topk_step_kl(**good)
    with pytest.raises(error, match=f"^linear_topk_step_kl: .*(?:{message})|^linear_topk_step_kl: {message}"):
        linear_topk_step_kl(**good | changes)


def test_a_causal_weighting_of_the_callers_own_is_named_too():
    def odd(statistics):
        return statistics.divergence[:1]

    odd.is_causal = True
    with pytest.raises(ValueError, match=r"^linear_topk_step_kl: weighting's result has shape \(1,\)"):
        linear_topk_step_kl(H, W, LOG_PROBS, IDS, STEPS, weighting=odd)


def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(BackendUnavailableError, match=r"^linear_topk_step_kl: backend='native' cannot run"):
        linear_topk_step_kl(H.double(), W.double(), LOG_PROBS, IDS, backend="native")


class TestModule:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"tail": "rest"}, ValueError, "tail='rest'; wanted one of bucket, renormalise, drop"),
            ({"student_softcap": 0.0}, ValueError, "student_softcap=0.0; wanted a finite number above 0"),
            ({"student_logit_scale": "1"}, TypeError, "student_logit_scale is str; wanted a Python number"),
            ({"reduction": "none"}, ValueError, "reduction='none' in a single sweep"),
            ({"kl_coefficient": "1"}, TypeError, "kl_coefficient is str"),
            ({"chunk_size": 0}, ValueError, "chunk_size=0; wanted at least 1"),
            ({"divergence": "kl"}, ValueError, "divergence='kl'; wanted one of"),
            ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
            ({"weighting": torch.ones(2)}, TypeError, "weighting is a tensor, which fits one batch only"),
        ],
    )
    def test_checks_its_options_when_made(self, options, error, message):
        with pytest.raises(error, match=f"^LinearTopKStepKLLoss: {message}"):
            LinearTopKStepKLLoss(**options)

    def test_is_the_function_with_the_options_kept(self):
        ids = torch.tensor([0, 0, 0, 1, 1, -1, 2])
        student, lists = make_batch(ids.shape, has_bias=True)
        options = {
            "student_logit_scale": 0.8,
            "student_softcap": 4.0,
            "kl_coefficient": 0.7,
            "entropy_coefficient": 0.1,
            "chunk_size": 2,
            "divergence": "jsd",
            "beta": 0.3,
            "temperature": 1.7,
            "vocab_size": 11,
            "weighting": SodWeighting(delta=0.4),
            "reduction": "sequence_mean",
            "backend": "reference",
        }
        batch = student | dict(zip(("teacher_log_probs", "teacher_ids"), lists, strict=True))
        batch |= {"step_ids": ids, "num_steps": 3, "denominator": 7.0, "token_weights": torch.rand(7)}
        for tail in TAILS[:2]:
            ours = LinearTopKStepKLLoss(tail=tail, **options)(**batch)
            assert torch.equal(ours.loss, linear_topk_step_kl(tail=tail, **batch, **options).loss)

    def test_takes_every_argument_of_the_function_with_its_default(self):
        function = inspect.signature(linear_topk_step_kl).parameters
        options = dict(inspect.signature(LinearTopKStepKLLoss.__init__).parameters)
        batch = dict(inspect.signature(LinearTopKStepKLLoss.forward).parameters)
        del options["self"], batch["self"]
        assert set(options) | set(batch) == set(function)
        assert not set(options) & set(batch)
        for name, parameter in {**options, **batch}.items():
            assert parameter.default == function[name].default, name

    def test_shows_what_differs_from_the_defaults(self):
        assert repr(LinearTopKStepKLLoss()) == "LinearTopKStepKLLoss()"
        module = LinearTopKStepKLLoss(tail="drop", chunk_size=32)
        assert repr(module) == "LinearTopKStepKLLoss(tail='drop', chunk_size=32)"
        assert not list(module.parameters())
