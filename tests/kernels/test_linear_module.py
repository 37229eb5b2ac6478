"""`LinearStepKLLoss` is `linear_step_kl` with the options kept."""

import inspect

import torch
from linear_inputs import NUM_COLUMNS, PACKED_IDS, PACKED_TRAJECTORY, make_heads

from sod_kernels import LinearStepKLLoss, PolicyGradient, SodWeighting, linear_step_kl

OPTIONS = {
    "student_logit_scale": 0.8,
    "teacher_softcap": 6.0,
    "reference_logit_scale": 1.2,
    "kl_coefficient": 0.7,
    "entropy_coefficient": 0.1,
    "chunk_size": 5,
    "divergence": "jsd",
    "beta": 0.3,
    "temperature": 1.7,
    "vocab_size": 10,
    "step_divergence": "abs_log_ratio",
    "weighting": SodWeighting(delta=0.4),
    "reduction": "sequence_mean",
    "backend": "reference",
}


def test_equals_linear_step_kl():
    rows = torch.linspace(-1.0, 1.0, PACKED_IDS.numel(), dtype=torch.float64)
    batch = make_heads(PACKED_IDS.shape, has_bias=True, has_reference=True) | {
        "step_ids": PACKED_IDS,
        "sampled_ids": torch.arange(PACKED_IDS.numel()) % (NUM_COLUMNS - 1),
        "step_trajectory": PACKED_TRAJECTORY,
        "num_steps": 6,
        "policy_gradient": PolicyGradient(advantages=rows, old_log_probs=rows - 2.0),
        "token_weights": rows.abs(),
        "denominator": 7.0,
    }
    ours, wanted = LinearStepKLLoss(**OPTIONS)(**batch), linear_step_kl(**batch, **OPTIONS)
    assert torch.equal(ours.loss, wanted.loss)
    assert torch.equal(ours.step_weights, wanted.step_weights)
    del batch["step_ids"]
    for options in ({"single_sweep": False}, {"min_log_prob": -1.0, "student_softcap": 2.0}):
        mask = {"response_mask": torch.ones(PACKED_IDS.shape), "step_trajectory": None, "num_steps": None}
        ours, wanted = LinearStepKLLoss(**options)(**batch | mask), linear_step_kl(**batch | mask, **options)
        assert torch.equal(ours.loss, wanted.loss)
        assert ours.token_kl.requires_grad == wanted.token_kl.requires_grad == ("single_sweep" in options)


def test_takes_every_argument_of_linear_step_kl_with_its_default():
    function = inspect.signature(linear_step_kl).parameters
    options = dict(inspect.signature(LinearStepKLLoss.__init__).parameters)
    batch = dict(inspect.signature(LinearStepKLLoss.forward).parameters)
    del options["self"], batch["self"]
    assert set(options) | set(batch) == set(function)
    assert not set(options) & set(batch)
    for name, parameter in {**options, **batch}.items():
        assert parameter.default == function[name].default, name


def test_shows_what_differs_from_the_defaults():
    assert repr(LinearStepKLLoss()) == "LinearStepKLLoss()"
    assert repr(LinearStepKLLoss(chunk_size=32, weighting=SodWeighting())) == (
        "LinearStepKLLoss(chunk_size=32, weighting=SodWeighting(delta=0.2, epsilon=1e-06))"
    )
    assert not list(LinearStepKLLoss().parameters())
