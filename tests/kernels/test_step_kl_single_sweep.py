"""`step_kl` in a single sweep: the same numbers, the gradient made on the way, for the loss alone."""

import pytest
import torch
from step_kl_inputs import DIVERGENCES, MASK, make_inputs, plain_kl

from sod_kernels import SodWeighting, StepKLLoss, step_kl, steps_from_mask
from sod_kernels.native.backend import availability
from sod_kernels.testing import make_case

needs_native = pytest.mark.skipif(availability("cpu") is not None, reason=str(availability("cpu")))
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
WEIGHTS = torch.tensor([1.0, 0.25, 0.0, 1.5])
REDUCTIONS = ("sum", "token_mean", "step_mean", "sequence_mean")


def _batch(dtype=torch.float32, with_reference=False):
    """Steps, rows in no step, weights of tokens and steps of which some are 0; leading shape (2, 7)."""
    student, teacher, sampled = make_inputs(dtype=dtype)
    token_weights = torch.linspace(0.0, 2.0, 14).view(2, 7)
    options = {"response_mask": MASK, "sampled_ids": sampled, "token_weights": token_weights}
    if with_reference:
        options["reference_logits"] = make_inputs(dtype=dtype, seed=5)[0].detach()
    return student, teacher, options | {"weighting": WEIGHTS.to(torch.float64)}


def _both(student, teacher, factor=1.0, **options):
    """Outputs and gradient of two sweeps and of a single one."""
    results = []
    for single_sweep in (False, True):
        out = step_kl(student, teacher, single_sweep=single_sweep, **options)
        (grad,) = torch.autograd.grad(factor * out.loss, student)
        shown = {name: value for name, value in vars(out).items() if name != "backend" and value is not None}
        results.append(shown | {"gradient": grad})
    return results


def _assert_same_bits(two, one):
    assert two.keys() == one.keys()
    for name, wanted in two.items():
        assert one[name].dtype == wanted.dtype
        assert torch.equal(one[name].nan_to_num(7.0), wanted.nan_to_num(7.0)), name


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize(("divergence", "floor"), [*((d, None) for d in DIVERGENCES), ("forward_kl", -3.0)])
def test_same_bits_as_two_sweeps(divergence, floor, with_reference, dtype, reduction, backend):
    student, teacher, options = _batch(dtype, with_reference)
    _assert_same_bits(
        *_both(
            student,
            teacher,
            divergence=divergence,
            min_log_prob=floor,
            temperature=1.3,
            reduction=reduction,
            backend=backend,
            **options,
        )
    )


@pytest.mark.parametrize("factor", [-2.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("denominator", [8.0, torch.tensor(16)])
def test_upstream_gradient_and_denominator(denominator, dtype, factor):
    # Powers of two, for which scaling after rounding is scaling before.
    student, teacher, options = _batch(dtype, with_reference=True)
    _assert_same_bits(*_both(student, teacher, factor, denominator=denominator, **options))


def test_matches_the_formula_in_float64():
    student, teacher, options = _batch(torch.float64, with_reference=True)
    out = step_kl(student, teacher, single_sweep=True, **options)
    ids, exact = steps_from_mask(MASK), student.detach().clone().requires_grad_()
    weights = WEIGHTS.double()[ids.clamp(min=0)] * (ids >= 0)
    rest = (1.0 - WEIGHTS.double()).clamp(min=0)[ids.clamp(min=0)] * (ids >= 0)
    terms = weights * plain_kl(exact, teacher) + rest * plain_kl(exact, options["reference_logits"])
    wanted = (options["token_weights"].double() * terms).sum() / (ids >= 0).sum()
    torch.testing.assert_close(out.loss, wanted)
    ours, truth = torch.autograd.grad(out.loss, student)[0], torch.autograd.grad(wanted, exact)[0]
    torch.testing.assert_close(ours, truth)


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradcheck(divergence, with_reference):
    student, teacher, options = _batch(torch.float64, with_reference)

    def loss(logits):
        return step_kl(logits, teacher, divergence=divergence, single_sweep=True, **options).loss

    assert torch.autograd.gradcheck(loss, (student,))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layouts_and_padding(backend):
    student, teacher, options = _batch()
    width = student.shape[-1]
    _assert_same_bits(*_both(student, teacher, vocab_size=width - 3, backend=backend, **_clamped(options)))
    for layout in ("shifted", "transposed", "packed"):
        base = student.detach()
        if layout == "shifted":
            leaf = torch.nn.functional.pad(base, (0, 0, 0, 1)).requires_grad_()
            view, others = leaf[:, :-1], {}
        elif layout == "transposed":
            leaf = base.transpose(1, 2).contiguous().requires_grad_()
            view, others = leaf.transpose(1, 2), {}
        else:
            leaf = base.clone().requires_grad_()
            view, others = leaf.flatten(0, 1), {"step_trajectory": torch.tensor([0, 0, 1, 1])}
        grads = []
        for single_sweep in (False, True):
            given = options | others
            if layout == "packed":
                given = {name: _packed(value) for name, value in given.items() if name != "response_mask"}
                given["step_ids"] = steps_from_mask(MASK).flatten()
            right = teacher.flatten(0, 1) if layout == "packed" else teacher
            out = step_kl(view, right, single_sweep=single_sweep, backend=backend, **given)
            grads.append((out.loss, out.token_kl, *torch.autograd.grad(out.loss, leaf)))
        for two, one in zip(*grads, strict=True):
            assert torch.equal(two, one), layout


def _clamped(options):
    return options | {"sampled_ids": options["sampled_ids"].clamp(max=7)}


def _packed(value):
    return value.flatten() if value.shape == MASK.shape else value


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "num_steps"), [((0, 5), 3), ((2, 0, 5), 2), ((3, 5), 0)])
def test_nothing_to_do(shape, num_steps, backend):
    student = torch.randn(shape, requires_grad=True)
    ids = torch.full(shape[:-1], -1)
    out = step_kl(student, -student, ids, num_steps=num_steps, single_sweep=True, backend=backend)
    out.loss.backward()
    assert out.loss == 0.0
    assert not student.grad.any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_infinite_divergence(weight, backend):
    student, teacher, options = _batch()
    teacher[0, 1, 4] = -torch.inf
    options["weighting"] = torch.tensor([weight, 0.25, 0.0, 1.5])
    options["token_weights"] = torch.ones(2, 7)
    two, one = _both(student, teacher, backend=backend, **options)
    _assert_same_bits(two, one)
    assert one["token_kl"][0, 1] == torch.inf
    assert one["loss"].isfinite() == (weight == 0.0)
    assert not one["gradient"][0, 1].any()
    assert one["gradient"].isfinite().all()


def test_the_loss_alone_is_differentiable():
    student, teacher, options = _batch(with_reference=True)
    out = step_kl(student, teacher, single_sweep=True, **options)
    differentiable = {name for name, value in vars(out).items() if getattr(value, "requires_grad", False)}
    assert differentiable == {"loss"}


@pytest.mark.parametrize("is_frozen", [True, False])
def test_no_gradient_is_made_where_none_is_wanted(is_frozen, monkeypatch):
    from sod_kernels.reference import backend

    monkeypatch.setattr(backend, "forward_backward", None)
    student, teacher, options = _batch()
    student.requires_grad_(not is_frozen)
    with torch.set_grad_enabled(is_frozen):
        out = step_kl(student, teacher, single_sweep=True, backend="reference", **options)
    assert not out.loss.requires_grad
    two = step_kl(student, teacher, backend="reference", **options)
    assert torch.equal(out.loss, two.loss)


@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize("is_packed", [True, False])
def test_the_gradient_is_kept_in_place_of_the_logits_and_handed_over(is_packed, factor, monkeypatch):
    from sod_kernels.reference import backend

    run, made = backend.forward_backward, []

    def noted(*arguments, **options):
        result = run(*arguments, **options)
        made.append(result[1].data_ptr())
        return result

    monkeypatch.setattr(backend, "forward_backward", noted)
    shape = (14, 11) if is_packed else (2, 7, 11)
    student, teacher = torch.randn(shape, requires_grad=True), torch.randn(shape)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        out = step_kl(student, teacher, single_sweep=True, backend="reference")
    large = {each.untyped_storage().data_ptr() for each in kept if each.untyped_storage().nbytes() > 14 * 8}
    assert large == set(made)
    kept.clear()
    (factor * out.loss).backward()
    # The leaf takes the very memory.
    assert [student.grad.data_ptr()] == made


def test_second_backward_without_a_kept_graph_is_refused_and_with_one_is_right():
    student, teacher, options = _batch()
    out = step_kl(student, teacher, single_sweep=True, **options)
    (first,) = torch.autograd.grad(3.0 * out.loss, student, retain_graph=True)
    (second,) = torch.autograd.grad(3.0 * out.loss, student)
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(3.0 * out.loss, student)


def test_gradient_of_the_gradient_is_refused():
    student, teacher, options = _batch()
    out = step_kl(student, teacher, single_sweep=True, **options)
    (grad,) = torch.autograd.grad(out.loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^step_kl: the gradient of the gradient was asked for"):
        grad.sum().backward()


@pytest.mark.parametrize("wants_gradient", [True, False])
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("with_sampled", [True, False])
def test_opcheck(with_sampled, with_reference, wants_gradient):
    case = make_case("scattered_steps", with_sampled=with_sampled, with_reference=with_reference)
    case.student_logits.requires_grad_(wants_gradient)
    factors = torch.linspace(0.0, 1.0, case.step_ids.numel()).view(case.step_ids.shape)
    learned = torch.zeros((), requires_grad=wants_gradient)
    parts = (factors, 1.0 - factors if with_reference else None, torch.tensor(3.0), learned)
    spec = case.spec
    options = (spec.divergence, spec.beta, spec.temperature, spec.vocab_size, spec.min_log_prob, "reference")
    arguments = (*case.inputs, *parts, wants_gradient, case.num_steps, *options)
    torch.library.opcheck(torch.ops.sod_kernels.step_kl_loss, arguments)


def test_opcheck_of_what_scales_the_gradient():
    arguments = (torch.tensor(2.0), torch.ones(()), torch.ones(3, 2), "step_kl")
    torch.library.opcheck(torch.ops.sod_kernels.scale_gradient, arguments)


def _loss(student, teacher, reference, ids, sampled, weights, single_sweep):
    out = step_kl(
        student,
        teacher,
        ids,
        sampled_ids=sampled,
        reference_logits=reference,
        weighting=weights,
        reduction="sequence_mean",
        single_sweep=single_sweep,
        backend="reference",
    )
    return out.loss, out.token_kl, out.step_weights


@pytest.mark.no_cover
@pytest.mark.parametrize("mode", ["aot_eager", "inductor"])
def test_compiled_equals_eager_with_changing_rows(mode):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(_loss, fullgraph=True, dynamic=True, backend=mode)
    for num_rows, num_tokens in ((2, 6), (3, 9), (5, 4)):
        generator = torch.Generator().manual_seed(num_rows)
        shape = (num_rows, num_tokens, 13)
        student, teacher, reference = (torch.randn(shape, generator=generator) for _ in range(3))
        student.requires_grad_()
        ids = 2 * torch.arange(num_rows)[:, None] + torch.arange(num_tokens) // 2 % 2
        sampled = torch.randint(13, shape[:2], generator=generator)
        weights = torch.rand(2 * num_rows, generator=generator)
        results = []
        for function, single_sweep in ((compiled, True), (_loss, True), (_loss, False)):
            loss, *others = function(student, teacher, reference, ids, sampled, weights, single_sweep)
            results.append((loss, *others, *torch.autograd.grad(3.0 * loss, student)))
        for ours, eager, wanted in zip(*results, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(eager, wanted, rtol=1e-6, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


BAD = [
    ({"single_sweep": 1}, TypeError, "single_sweep is int; wanted True or False"),
    ({"reduction": "none"}, ValueError, r"reduction='none' in a single sweep.*Use single_sweep=False"),
    (
        {"weighting": SodWeighting()},
        ValueError,
        r"weighting is SodWeighting in a single sweep.*None or a tensor \(S,\). Use single_sweep=False",
    ),
    ({"process_group": object()}, ValueError, "process_group= in a single sweep.*Use single_sweep=False"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD, ids=[next(iter(case[0])) for case in BAD])
def test_what_a_single_sweep_cannot_do(change, error, message):
    logits = torch.zeros(2, 3, 5)
    with pytest.raises(error, match=f"^step_kl: {message}"):
        step_kl(logits, logits, **{"single_sweep": True} | change)


@pytest.mark.parametrize(("change", "error", "message"), BAD[:3], ids=[next(iter(c[0])) for c in BAD[:3]])
def test_the_module_says_so_when_it_is_made(change, error, message):
    with pytest.raises(error, match=f"^StepKLLoss: {message}"):
        StepKLLoss(**{"single_sweep": True} | change)


def test_module_passes_it_on():
    student, teacher, _ = _batch()
    out = StepKLLoss(single_sweep=True)(student, teacher, response_mask=MASK)
    assert out.loss.requires_grad
    assert not out.token_kl.requires_grad
    assert torch.equal(out.loss, step_kl(student, teacher, response_mask=MASK).loss)
