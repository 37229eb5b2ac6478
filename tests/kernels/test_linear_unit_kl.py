"""`linear_unit_kl` is `unit_kl` on the logits of the heads, whatever the chunks."""

import pytest
import torch
from linear_unit_inputs import STEPS, gradients, make_case, run_linear, through_logits
from unit_inputs import DIVERGENCES, SCORES

from sod_kernels import LinearUnitKLLoss, SodWeighting, TurnWeighting, Units, linear_unit_kl
from sod_kernels.triton import backend as triton_backend

HAS_TRITON = triton_backend.availability("cpu") is None
FIELDS = (
    "unit_kl",
    "unit_entropy",
    "unit_steps",
    "step_divergence",
    "step_weights",
    "step_tokens",
    "step_units",
    "unit_teacher_mass",
    "unit_student_log_probs",
    "unit_teacher_log_probs",
)


def assert_equal(ours, wanted, heads, *, rtol=1e-9, atol=1e-11):
    for name in FIELDS:
        one, other = getattr(ours, name), getattr(wanted, name)
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol, msg=name)
    torch.testing.assert_close(ours.loss.double(), wanted.loss.double(), rtol=rtol, atol=atol)
    pairs = zip(gradients(ours.loss, heads), gradients(wanted.loss, heads, retain_graph=True), strict=True)
    for one, other in pairs:
        assert other.any()
        torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, None])
@pytest.mark.parametrize("score", SCORES)
def test_equals_unit_kl_for_every_chunk_size(score, chunk_size):
    pair, heads = make_case(has_bias=True)
    options = {"score": score, "step_ids": STEPS, "weighting": SodWeighting(), "temperature": 0.8}
    wanted = through_logits(pair, heads, **options)
    for single_sweep in (True, False):
        ours = run_linear(pair, heads, chunk_size=chunk_size, single_sweep=single_sweep, **options)
        assert_equal(ours, wanted, heads)
        assert ours.unit_kl.requires_grad == (not single_sweep)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("score", SCORES)
def test_scales_softcaps_and_biases(score, divergence):
    pair, heads = make_case(has_bias=True)
    scales, softcaps = {"student": 0.7, "teacher": 1.3}, {"student": 4.0, "teacher": 5.0}
    options = {"score": score, "divergence": divergence, "mask_first_token": True}
    wanted = through_logits(pair, heads, scales=scales, softcaps=softcaps, **options)
    names = {f"{model}_logit_scale": scale for model, scale in scales.items()}
    names |= {f"{model}_softcap": cap for model, cap in softcaps.items()}
    for single_sweep in (True, False):
        ours = run_linear(pair, heads, chunk_size=3, single_sweep=single_sweep, **names, **options)
        assert_equal(ours, wanted, heads)


@pytest.mark.parametrize(
    "options",
    [
        {"topk": 5},
        {"topk": 4, "mask_first_token": True, "weighting": SodWeighting()},
        {"unit_filter": "one_to_one"},
        {"min_teacher_mass": 0.1},
        {"step_divergence": "abs_log_ratio", "weighting": SodWeighting()},
        {"step_divergence": "abs_log_ratio"},
        {"weighting": TurnWeighting(min_turns=2)},
        {"weighting": torch.tensor([0.5, 0.0, 2.0]).double()},
        {"weighting": lambda statistics: 1.0 / (1.0 + statistics.divergence)},
        {"token_weights": torch.linspace(0, 2, 15).double(), "reduction": "step_mean"},
        {"reduction": "sequence_mean", "step_trajectory": torch.tensor([0, 1, 1])},
        {"reduction": "sum", "weighting": SodWeighting(delta=0.5)},
        {"denominator": torch.tensor(7.0)},
    ],
    ids="+".join,
)
def test_options_mean_what_they_do_in_unit_kl(options):
    pair, heads = make_case(has_bias=True)
    for steps in (STEPS, torch.tensor([-1] * 2 + [0] * 6 + [2] * 6 + [-1])):
        wanted = through_logits(pair, heads, step_ids=steps, num_steps=3, **options)
        ours = run_linear(pair, heads, step_ids=steps, num_steps=3, chunk_size=2, **options)
        assert_equal(ours, wanted, heads)


def test_steps_that_wait_for_their_weight_and_steps_out_of_order():
    pair, heads = make_case()
    steps = torch.tensor([2] * 5 + [0] * 6 + [1] * 4)
    options = {"step_ids": steps, "weighting": SodWeighting(delta=0.1)}
    wanted = through_logits(pair, heads, **options)
    for chunk_size in (1, 2, 4):
        assert_equal(run_linear(pair, heads, chunk_size=chunk_size, **options), wanted, heads)


@pytest.mark.parametrize("reduction", ["none", "token_mean"])
def test_two_sweeps_take_any_upstream_gradient(reduction):
    pair, heads = make_case()
    factors = torch.linspace(-1, 2, 8).double()
    both = (
        run_linear(pair, heads, single_sweep=False, reduction=reduction, chunk_size=3),
        through_logits(pair, heads, reduction=reduction),
    )
    results = [gradients(out.loss.sum() + (factors * out.unit_kl).sum(), heads) for out in both]
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("single_sweep", [True, False])
@pytest.mark.parametrize("frozen", [("student_hidden",), ("student_weight",), ("student_bias",)])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(frozen, single_sweep):
    pair, heads = make_case(has_bias=True)
    wanted = dict(zip(heads, gradients(through_logits(pair, heads).loss, heads), strict=False))
    for name in frozen:
        heads[name] = heads[name].detach()
    ours = run_linear(pair, heads, single_sweep=single_sweep, chunk_size=4)
    names = [name for name, each in heads.items() if each.requires_grad]
    for name, ours_grad in zip(names, gradients(ours.loss, heads), strict=True):
        torch.testing.assert_close(ours_grad, wanted[name], rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        alone = run_linear(pair, heads, single_sweep=single_sweep, chunk_size=4)
    assert torch.equal(alone.loss, ours.loss.detach())


@pytest.mark.parametrize("single_sweep", [True, False])
def test_rows_outside_compared_units_are_not_read(single_sweep):
    pair, heads = make_case()
    steps = torch.tensor([0] * 11 + [-1] * 4)
    options = {"step_ids": steps, "single_sweep": single_sweep, "chunk_size": 3}
    wanted = run_linear(pair, heads, **options)
    compared = wanted.unit_steps >= 0
    assert 0 < int(compared.sum()) < len(compared)
    spans = (pair.units.student_spans, pair.units.teacher_spans)
    for model, of_units in zip(("student", "teacher"), spans, strict=True):
        hidden = torch.full_like(heads[f"{model}_hidden"], torch.nan)
        for start, end in of_units[compared].tolist():
            hidden[start:end] = heads[f"{model}_hidden"].detach()[start:end]
        heads[f"{model}_hidden"] = hidden.requires_grad_(model == "student")
    out = run_linear(pair, heads, **options)
    assert torch.equal(out.unit_kl, wanted.unit_kl)
    hidden, weight = gradients(out.loss, heads)
    assert weight.isfinite().all()
    is_outside = heads["student_hidden"].isnan().any(-1)
    assert not hidden[is_outside].any()
    assert hidden[~is_outside].any(-1).all()


def test_columns_that_a_bias_takes_out():
    pair, heads = make_case(has_bias=True)
    # No token of either side, so that no span is excluded with it.
    is_free = ~torch.isin(pair.vocab_map.student_columns, pair.student_ids)
    is_free &= ~torch.isin(pair.vocab_map.teacher_columns, pair.teacher_ids)
    free = int(is_free.nonzero()[0])
    column, other = pair.vocab_map.student_columns[free], pair.vocab_map.teacher_columns[free]
    with torch.no_grad():
        heads["student_bias"][column] = -torch.inf
        heads["teacher_bias"][other] = -torch.inf
    for single_sweep in (True, False):
        ours = run_linear(pair, heads, chunk_size=3, single_sweep=single_sweep)
        assert_equal(ours, through_logits(pair, heads), heads)


def test_padding_rows_of_the_heads_get_no_gradient_and_do_not_count():
    pair, heads = make_case(has_bias=True)
    wanted = through_logits(pair, heads)
    wanted_grads = gradients(wanted.loss, heads)
    for name, each in heads.items():
        if not name.endswith("hidden"):
            more = torch.full((3, *each.shape[1:]), 9.0, dtype=each.dtype)
            heads[name] = torch.cat([each.detach(), more]).requires_grad_(each.requires_grad)
    ours = run_linear(pair, heads, student_vocab_size=37, teacher_vocab_size=41, chunk_size=4)
    torch.testing.assert_close(ours.unit_kl, wanted.unit_kl.detach(), rtol=1e-10, atol=1e-12)
    hidden, weight, bias = gradients(ours.loss, heads)
    for grad, other in (
        (hidden, wanted_grads[0]),
        (weight[:37], wanted_grads[1]),
        (bias[:37], wanted_grads[2]),
    ):
        torch.testing.assert_close(grad, other, rtol=1e-9, atol=1e-11)
    assert not weight[37:].any()
    assert not bias[37:].any()


@pytest.mark.parametrize("single_sweep", [True, False])
def test_no_units(single_sweep):
    pair, heads = make_case(has_bias=True)
    nothing = torch.empty(0, 2, dtype=torch.int64)
    labels = {"student_ids": pair.student_ids, "teacher_ids": pair.teacher_ids}
    out = linear_unit_kl(
        **heads,
        units=Units(nothing, nothing),
        vocab_map=pair.vocab_map,
        **labels,
        single_sweep=single_sweep,
        step_divergence="abs_log_ratio",
        token_weights=torch.ones(15),
    )
    assert float(out.loss.detach()) == 0
    assert not any(grad.any() for grad in gradients(out.loss, heads))
    assert out.step_tokens.tolist() == [15]


@pytest.mark.parametrize(("backend", "single_sweep"), [("native", True), ("native", False), ("triton", True)])
def test_float32_stays_within_rounding_of_unit_kl(backend, single_sweep):
    if backend == "triton" and not HAS_TRITON:
        pytest.skip("no Triton here")
    pair, heads = make_case(dtype=torch.float32, has_bias=True)
    # The interpreter takes a tenth of a second per program.
    steps = STEPS if backend == "native" else torch.tensor([0] * 5 + [-1] * 10)
    options = {"divergence": "reverse_kl", "step_ids": steps, "weighting": SodWeighting()}
    wanted = through_logits(pair, heads, **options)
    ours = run_linear(pair, heads, backend=backend, chunk_size=3, single_sweep=single_sweep, **options)
    assert ours.backend == backend
    assert ours.unit_kl.dtype == torch.float32
    assert_equal(ours, wanted, heads, rtol=1e-5, atol=1e-6)


def test_bfloat16_heads_and_dtypes_of_their_own():
    pair, heads = make_case(dtype=torch.bfloat16)
    wanted = through_logits(pair, heads)
    ours = run_linear(pair, heads, chunk_size=4, backend="auto")
    torch.testing.assert_close(ours.loss.double(), wanted.loss, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(ours.loss, heads), gradients(wanted.loss, heads), strict=True):
        assert one.dtype == torch.bfloat16
        assert float((one.double() - other.double()).norm() / other.double().norm()) < 5e-3
    for name in ("teacher_hidden", "teacher_weight"):
        heads[name] = heads[name].double()
    mixed = run_linear(pair, heads, chunk_size=4)
    assert mixed.loss.dtype == torch.float64
    torch.testing.assert_close(mixed.loss, wanted.loss, rtol=1e-9, atol=0)


def test_results_repeat_bit_for_bit_and_gradients_scale():
    pair, heads = make_case(dtype=torch.float32, has_bias=True)
    runs = []
    for factor in (1.0, 1.0, 2.0):
        out = run_linear(pair, heads, step_ids=STEPS, weighting=SodWeighting(), chunk_size=3, backend="auto")
        runs.append((out.loss.detach(), out.unit_kl, *gradients(factor * out.loss, heads)))
    assert all(torch.equal(one, other) for one, other in zip(*runs[:2], strict=True))
    assert all(torch.equal(2 * one, other) for one, other in zip(runs[0][2:], runs[2][2:], strict=True))


def test_gradcheck():
    pair, heads = make_case(has_bias=True)
    inputs = [heads["student_hidden"], heads["student_weight"], heads["student_bias"]]

    def losses(hidden, weight, bias):
        changed = heads | {"student_hidden": hidden, "student_weight": weight, "student_bias": bias}
        out = run_linear(pair, changed, single_sweep=False, chunk_size=4, student_softcap=3.0)
        return out.loss, out.unit_kl

    assert torch.autograd.gradcheck(losses, inputs, fast_mode=True)


def test_module_is_the_function_with_its_options_kept():
    pair, heads = make_case(has_bias=True)
    options = {"student_softcap": 4.0, "topk": 6, "chunk_size": 3, "weighting": SodWeighting(delta=0.4)}
    labels = {"student_ids": pair.student_ids, "teacher_ids": pair.teacher_ids, "step_ids": STEPS}
    module = LinearUnitKLLoss(**options)
    ours = module(**heads, units=pair.units, vocab_map=pair.vocab_map, **labels)
    wanted = linear_unit_kl(**heads, units=pair.units, vocab_map=pair.vocab_map, **labels, **options)
    assert torch.equal(ours.loss, wanted.loss)
    assert torch.equal(ours.step_weights, wanted.step_weights)
    assert repr(LinearUnitKLLoss(topk=3)) == "LinearUnitKLLoss(topk=3)"
