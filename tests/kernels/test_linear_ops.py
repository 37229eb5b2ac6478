"""The ops from hidden states under torch's own checks and torch.compile."""

import pytest
import torch
from linear_inputs import NUM_COLUMNS, PACKED_IDS, PACKED_TRAJECTORY, learned, make_heads

from sod_kernels import LinearStepKLLoss, PolicyGradient, SodWeighting, TurnWeighting, linear_step_kl
from sod_kernels.linear import weights as weights_module
from sod_kernels.linear.inputs import LinearInputs, LinearOptions, Objective
from sod_kernels.types import TokenStats

SAMPLED = torch.randint(NUM_COLUMNS, PACKED_IDS.shape, generator=torch.Generator().manual_seed(5))


def _arguments(*, has_all, requires_grad=True):
    heads = make_heads(PACKED_IDS.shape, has_bias=has_all, has_reference=has_all, dtype=torch.float32)
    names = [
        f"{model}_{name}"
        for model in ("student", "teacher", "reference")
        for name in ("hidden", "weight", "bias")
    ]
    tensors = (heads.get(name) for name in names)
    if not requires_grad:
        tensors = (None if each is None else each.detach() for each in tensors)
    inputs = LinearInputs(*tensors, PACKED_IDS, SAMPLED if has_all else None)
    options = LinearOptions(
        num_steps=6,
        student_scale=0.9,
        teacher_scale=1.0,
        reference_scale=1.0,
        student_softcap=4.0 if has_all else None,
        teacher_softcap=None,
        reference_softcap=None,
        divergence="reverse_kl",
        beta=0.5,
        temperature=1.0,
        vocab_size=NUM_COLUMNS,
        min_log_prob=None,
        chunk_size=5,
        backend="reference",
    )
    return inputs, options


def _objective(has_all):
    rows = torch.linspace(-1.0, 1.0, PACKED_IDS.numel()) if has_all else None
    return Objective(
        step_trajectory=PACKED_TRAJECTORY,
        step_weights=None,
        token_weights=None if rows is None else rows.abs(),
        denominator=torch.tensor(3.0) if has_all else None,
        advantages=rows,
        old_log_probs=rows,
        weighting=0,
        delta=0.2,
        epsilon=1e-6,
        clip_low=0.2,
        clip_high=0.3,
        dual_clip=3.0,
        kl_coefficient=0.8,
        entropy_coefficient=0.1 if has_all else 0.0,
        step_divergence="kl",
        reduction="token_mean",
    )


@pytest.mark.parametrize("has_all", [True, False])
class TestOpcheck:
    def test_forward(self, has_all):
        inputs, options = _arguments(has_all=has_all)
        torch.library.opcheck(torch.ops.sod_kernels.linear_step_kl_forward, (*inputs, *options))

    @pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, True, False)])
    def test_backward(self, has_all, wanted):
        inputs, options = _arguments(has_all=has_all, requires_grad=False)
        stats = TokenStats(*torch.ops.sod_kernels.linear_step_kl_forward(*inputs, *options))
        upstream = (
            torch.ones_like(each)
            for each in (
                stats.token_kl,
                stats.token_reference_kl,
                stats.student_log_probs,
                stats.student_entropy,
            )
        )
        wanted = (*wanted[:2], wanted[2] and has_all)
        arguments = (*upstream, stats.row_state, *wanted, *inputs, *options)
        torch.library.opcheck(torch.ops.sod_kernels.linear_step_kl_backward, arguments)

    def test_loss(self, has_all):
        inputs, options = _arguments(has_all=has_all)
        arguments = (*inputs, *options, *_objective(has_all), True, True, has_all)
        torch.library.opcheck(torch.ops.sod_kernels.linear_step_kl_loss, arguments)


def test_meta_tensors_give_shapes():
    inputs, options = _arguments(has_all=True)
    on_meta = [None if each is None else each.to("meta") for each in inputs]
    objective = [each.to("meta") if isinstance(each, torch.Tensor) else each for each in _objective(True)]
    outputs = torch.ops.sod_kernels.linear_step_kl_loss(*on_meta, *options, *objective, True, True, False)
    num_rows = PACKED_IDS.numel()
    assert [tuple(each.shape) for each in outputs] == [
        (),
        *[(num_rows,)] * 5,
        (6, 5),
        (6,),
        (num_rows, 4),
        (NUM_COLUMNS, 4),
        (0,),
    ]


def _loss(heads, ids, *, weighting, single_sweep, policy):
    out = linear_step_kl(
        **heads,
        step_ids=ids,
        num_steps=6,
        sampled_ids=SAMPLED[: ids.shape[0]],
        weighting=weighting,
        policy_gradient=policy,
        entropy_coefficient=0.1,
        chunk_size=4,
        single_sweep=single_sweep,
        backend="reference",
    )
    return out.loss, out.step_weights, out.token_kl


def _causal(statistics):
    return 1.0 / (1.0 + statistics.tokens.float())


_causal.is_causal = True


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("weighting", "single_sweep"),
    [(SodWeighting(), True), (TurnWeighting(min_turns=1), True), (_causal, True), (None, False)],
)
def test_compiled_equals_eager(weighting, single_sweep):
    torch._dynamo.reset()
    compiled = torch.compile(_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_rows in (31, 24):
        ids = PACKED_IDS[:num_rows]
        heads = make_heads(ids.shape, dtype=torch.float32)
        rows = torch.linspace(-1.0, 1.0, num_rows)
        policy = PolicyGradient(advantages=rows, old_log_probs=rows - 3.0)
        results = []
        for function in (compiled, _loss):
            options = {"weighting": weighting, "single_sweep": single_sweep, "policy": policy}
            loss, *others = function(heads, ids, **options)
            results.append((loss, *others, *torch.autograd.grad(2.0 * loss, learned(heads))))
        for ours, wanted in zip(*results, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.no_cover
def test_compiled_by_inductor_as_a_module():
    torch._dynamo.reset()
    module = LinearStepKLLoss(weighting=SodWeighting(), chunk_size=4, backend="reference")
    heads = make_heads(PACKED_IDS.shape, dtype=torch.float32)
    results = []
    for function in (torch.compile(module, fullgraph=True), module):
        loss = function(**heads, step_ids=PACKED_IDS, num_steps=6).loss
        results.append((loss, *torch.autograd.grad(loss, learned(heads))))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("single_sweep", [True, False])
def test_gradient_of_the_gradient_is_refused(single_sweep):
    heads = make_heads(PACKED_IDS.shape)
    out = linear_step_kl(**heads, step_ids=PACKED_IDS, single_sweep=single_sweep, backend="reference")
    (grad,) = torch.autograd.grad(out.loss, heads["student_hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"^linear_step_kl: the gradient of the gradient was asked for"):
        grad.sum().backward()


def test_second_backward_without_a_kept_graph_is_refused_and_with_one_is_right():
    heads = make_heads(PACKED_IDS.shape)
    out = linear_step_kl(**heads, step_ids=PACKED_IDS, backend="reference")
    first = torch.autograd.grad(3.0 * out.loss, learned(heads), retain_graph=True)
    second = torch.autograd.grad(3.0 * out.loss, learned(heads))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(3.0 * out.loss, learned(heads))


def test_a_loss_that_gets_no_gradient_gives_none():
    class Dropped(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss, other):
            return loss + other

        @staticmethod
        def backward(ctx, grad):
            return None, grad

    heads = make_heads(PACKED_IDS.shape)
    out = linear_step_kl(**heads, step_ids=PACKED_IDS, backend="reference")
    other = torch.zeros((), dtype=torch.float64, requires_grad=True)
    Dropped.apply(out.loss, other).backward()
    assert all(each.grad is None for each in learned(heads))
    assert other.grad == 1.0


def test_own_weighting_is_forgotten_after_the_call():
    heads = make_heads(PACKED_IDS.shape)

    def fail(statistics):
        raise KeyError("own")

    fail.is_causal = True
    with pytest.raises(KeyError, match="own"):
        linear_step_kl(**heads, step_ids=PACKED_IDS, weighting=fail, backend="reference")
    linear_step_kl(**heads, step_ids=PACKED_IDS, weighting=_causal, backend="reference")
    assert not weights_module._REGISTERED


def test_causal_weighting_sees_later_steps_without_tokens():
    heads, seen = make_heads(PACKED_IDS.shape), []

    def watch(statistics):
        seen.append((statistics.tokens.tolist(), statistics.divergence.clone()))
        return torch.ones_like(statistics.divergence)

    watch.is_causal = True
    out = linear_step_kl(**heads, step_ids=PACKED_IDS, weighting=watch, chunk_size=9, backend="reference")
    assert [tokens for tokens, _ in seen] == [[13, 1, 0, 0, 0, 0], [13, 1, 5, 4, 0, 0], [13, 1, 5, 4, 0, 4]]
    torch.testing.assert_close(seen[0][1][:2], out.step_divergence[:2])
    assert not seen[0][1][2:].any()


def test_results_repeat_bit_for_bit():
    heads = make_heads(PACKED_IDS.shape, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out = linear_step_kl(**heads, step_ids=PACKED_IDS, weighting=SodWeighting(), chunk_size=4)
        runs.append((out.loss, out.token_kl, *torch.autograd.grad(out.loss, learned(heads))))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
