"""The ops from hidden states against lists, under torch's own checks and torch.compile."""

import pytest
import torch
from linear_inputs import NUM_COLUMNS, PACKED_IDS, PACKED_TRAJECTORY, learned, make_heads
from test_linear_topk import make_batch

from sod_kernels import LinearTopKStepKLLoss, SodWeighting, TurnWeighting, linear_topk_step_kl
from sod_kernels._categories import listed_ids, read_teacher
from sod_kernels.linear.inputs import LinearInputs, LinearOptions, Objective
from sod_kernels.types import TokenStats

SAMPLED = torch.randint(NUM_COLUMNS, PACKED_IDS.shape, generator=torch.Generator().manual_seed(5))


def _arguments(*, has_sampled, requires_grad=True):
    student, lists = make_batch(PACKED_IDS.shape, dtype=torch.float32)
    teacher, _ = read_teacher(lists[0], listed_ids(lists[1], PACKED_IDS >= 0), NUM_COLUMNS)
    hidden, weight = (each.detach().requires_grad_(requires_grad) for each in learned(student))
    inputs = LinearInputs(
        hidden,
        weight,
        *[None] * 7,
        PACKED_IDS,
        SAMPLED if has_sampled else None,
        teacher.log_probs,
        teacher.ids,
        teacher.tail,
    )
    numbers = (6, 0.9, 1.0, 1.0, 4.0, None, None, "reverse_kl", 0.5, 1.0, NUM_COLUMNS, None, 5, "reference")
    return inputs, LinearOptions(*numbers, tail="bucket")


def _objective():
    numbers = (0, 0.2, 1e-6, 0.2, 0.3, 3.0, 0.8, 0.1, "kl", "token_mean")
    return Objective(PACKED_TRAJECTORY, None, None, None, None, None, *numbers)


@pytest.mark.parametrize("has_sampled", [True, False])
class TestOpcheck:
    def test_forward(self, has_sampled):
        inputs, options = _arguments(has_sampled=has_sampled)
        torch.library.opcheck(torch.ops.sod_kernels.linear_step_kl_forward, (*inputs, *options))

    def test_backward(self, has_sampled):
        inputs, options = _arguments(has_sampled=has_sampled, requires_grad=False)
        stats = TokenStats(*torch.ops.sod_kernels.linear_step_kl_forward(*inputs, *options))
        fields = ("token_kl", "token_reference_kl", "student_log_probs", "student_entropy")
        upstream = (torch.ones_like(getattr(stats, name)) for name in fields)
        arguments = (*upstream, stats.row_state, True, True, False, *inputs, *options)
        torch.library.opcheck(torch.ops.sod_kernels.linear_step_kl_backward, arguments)

    def test_loss(self, has_sampled):
        inputs, options = _arguments(has_sampled=has_sampled)
        arguments = (*inputs, *options, *_objective(), True, True, False)
        torch.library.opcheck(torch.ops.sod_kernels.linear_step_kl_loss, arguments)

    def test_off_the_host_no_value_is_looked_at(self, has_sampled):
        inputs, options = _arguments(has_sampled=has_sampled, requires_grad=False)
        ids = inputs.step_ids
        on_meta = LinearInputs(*(None if each is None else each.to("meta") for each in inputs))
        on_meta = on_meta._replace(step_ids=ids)
        outputs = torch.ops.sod_kernels.linear_step_kl_forward(*on_meta, *options)
        assert all(each.device.type == "meta" for each in outputs)
        assert outputs[5].shape == (ids.numel(), 2 + 4)


def _loss(student, lists, ids, *, weighting, single_sweep, tail):
    out = linear_topk_step_kl(
        student["student_hidden"],
        student["student_weight"],
        *lists,
        ids,
        num_steps=6,
        sampled_ids=SAMPLED[: ids.shape[0]],
        tail=tail,
        weighting=weighting,
        entropy_coefficient=0.1,
        chunk_size=4,
        single_sweep=single_sweep,
        backend="reference",
    )
    return out.loss, out.step_weights, out.token_kl


@pytest.mark.no_cover
@pytest.mark.parametrize(
    ("weighting", "single_sweep", "tail"),
    [
        (SodWeighting(), True, "bucket"),
        (TurnWeighting(min_turns=1), True, "renormalise"),
    ],
)
def test_compiled_equals_eager(weighting, single_sweep, tail):
    torch._dynamo.reset()
    compiled = torch.compile(_loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for num_rows in (31, 20):
        ids = PACKED_IDS[:num_rows]
        student, lists = make_batch(ids.shape, dtype=torch.float32)
        results = []
        for function in (compiled, _loss):
            options = {"weighting": weighting, "single_sweep": single_sweep, "tail": tail}
            loss, *others = function(student, lists, ids, **options)
            results.append((loss, *others, *torch.autograd.grad(2.0 * loss, learned(student))))
        for ours, wanted in zip(*results, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.no_cover
def test_compiled_module():
    torch._dynamo.reset()
    module = LinearTopKStepKLLoss(weighting=SodWeighting(), chunk_size=4, backend="reference")
    student, lists = make_batch(PACKED_IDS.shape, dtype=torch.float32)
    results = []
    for function in (torch.compile(module, fullgraph=True, backend="aot_eager"), module):
        loss = function(*learned(student), *lists, PACKED_IDS, num_steps=6).loss
        results.append((loss, *torch.autograd.grad(loss, learned(student))))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("single_sweep", [True, False])
def test_gradient_of_the_gradient_is_refused(single_sweep):
    student, lists = make_batch(PACKED_IDS.shape)
    out = linear_topk_step_kl(
        *learned(student), *lists, PACKED_IDS, single_sweep=single_sweep, backend="reference"
    )
    (grad,) = torch.autograd.grad(out.loss, student["student_hidden"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"^linear_topk_step_kl: the gradient of the gradient was"):
        grad.sum().backward()


def test_results_repeat_bit_for_bit():
    heads = make_heads(PACKED_IDS.shape, dtype=torch.float32)
    _, lists = make_batch(PACKED_IDS.shape, dtype=torch.float32)
    runs = []
    for _ in range(2):
        out = linear_topk_step_kl(*learned(heads), *lists, PACKED_IDS, weighting=SodWeighting(), chunk_size=4)
        runs.append((out.loss, out.token_kl, *torch.autograd.grad(out.loss, learned(heads))))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
