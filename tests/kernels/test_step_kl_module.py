"""`StepKLLoss` is `step_kl` with the options kept."""

import inspect

import torch

from sod_kernels import SodWeighting, StepKLLoss, step_kl

OPTIONS = {
    "divergence": "jsd",
    "beta": 0.3,
    "temperature": 1.7,
    "vocab_size": 8,
    "step_divergence": "abs_log_ratio",
    "weighting": SodWeighting(delta=0.4),
    "reduction": "sequence_mean",
    "backend": "reference",
}


def test_equals_step_kl():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 6, 9, generator=generator).unbind()
    batch = {
        "step_ids": torch.tensor([[0, 0, -1, 1, 1, 1], [2, 2, 3, 3, 4, 4]]),
        "sampled_ids": torch.randint(8, (2, 6), generator=generator),
        "step_trajectory": torch.tensor([5, 5, 6, 6, 5, 7]),
        "num_steps": 6,
        "token_weights": torch.rand(2, 6, generator=generator),
        "denominator": 7.0,
    }
    ours, wanted = (
        StepKLLoss(**OPTIONS)(student, teacher, **batch),
        step_kl(student, teacher, **batch, **OPTIONS),
    )
    assert torch.equal(ours.loss, wanted.loss)
    assert torch.equal(ours.step_weights, wanted.step_weights)
    floored = StepKLLoss(min_log_prob=-1.0)(student, teacher, response_mask=torch.ones(2, 6))
    assert torch.equal(floored.loss, step_kl(student, teacher, min_log_prob=-1.0).loss)


def test_takes_every_argument_of_step_kl_with_its_default():
    function = inspect.signature(step_kl).parameters
    options = dict(inspect.signature(StepKLLoss.__init__).parameters)
    batch = dict(inspect.signature(StepKLLoss.forward).parameters)
    del options["self"], batch["self"]
    assert set(options) | set(batch) == set(function)
    assert not set(options) & set(batch)
    for name, parameter in {**options, **batch}.items():
        assert parameter.default == function[name].default, name


def test_shows_what_differs_from_the_defaults():
    assert repr(StepKLLoss()) == "StepKLLoss()"
    assert repr(StepKLLoss(divergence="jsd", weighting=SodWeighting())) == (
        "StepKLLoss(divergence='jsd', weighting=SodWeighting(delta=0.2, epsilon=1e-06))"
    )
    assert not list(StepKLLoss().parameters())
