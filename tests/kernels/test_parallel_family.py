"""`process_group=` of the relatives of `step_kl` in one process: ops, modules, messages."""

import pytest
import torch
from step_kl_inputs import MASK, make_inputs
from topk_inputs import make_teacher_lists
from torch import distributed as dist

from sod_kernels import (
    LinearStepKLLoss,
    LinearTopKStepKLLoss,
    SodWeighting,
    TopKStepKLLoss,
    _collectives,
    linear_step_kl,
    linear_topk_step_kl,
    step_kl,
    topk_step_kl,
)
from sod_kernels.testing import make_case, make_log_prob_inputs
from sod_kernels.types import LogProbStats


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def _op_arguments(requires_grad, group):
    case = make_case("scattered_steps")
    case.student_logits.requires_grad_(requires_grad)
    inputs, upstream = make_log_prob_inputs(case)
    ids = torch.where(case.step_ids[..., None] >= 0, inputs.ids, -1)
    options = (inputs.temperature, inputs.vocab_size, 0, "reference", group.group_name)
    return (*inputs[:2], ids), upstream, options


def test_opcheck_of_sharded_log_probs(group):
    tensors, _, options = _op_arguments(True, group)
    torch.library.opcheck(torch.ops.sod_kernels.log_probs_sharded_forward, (*tensors, *options))
    tensors, upstream, options = _op_arguments(False, group)
    stats = LogProbStats(*torch.ops.sod_kernels.log_probs_sharded_forward(*tensors, *options))
    arguments = (*upstream, *tensors, stats.row_state, *options)
    torch.library.opcheck(torch.ops.sod_kernels.log_probs_sharded_backward, arguments)


def test_a_group_of_one_is_no_group_for_lists(group):
    student, teacher, sampled = make_inputs()
    lists = make_teacher_lists(teacher, 4)
    batch = {"response_mask": MASK, "sampled_ids": sampled, "weighting": SodWeighting()}
    results = []
    for process_group in (None, group):
        out = topk_step_kl(student, *lists, process_group=process_group, backend="reference", **batch)
        mixed = out.loss + out.student_log_probs.sum() - out.student_entropy.sum()
        results.append((out.token_kl, out.teacher_log_probs, mixed, *torch.autograd.grad(mixed, student)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-14)


def test_empty_batches_and_double_backward(group):
    student = torch.zeros(0, 5, requires_grad=True)
    lists = (torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.int64))
    topk_step_kl(student, *lists, process_group=group).loss.backward()
    assert student.grad.shape == (0, 5)
    student, teacher, _ = make_inputs()
    out = topk_step_kl(student, *make_teacher_lists(teacher, 3), process_group=group)
    (grad,) = torch.autograd.grad(out.loss, student, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^topk_step_kl: .* create_graph=True"):
        grad.sum().backward()


@pytest.mark.no_cover
def test_compiled_equals_eager(group):
    torch._dynamo.reset()

    def objective(student, log_probs, ids, sampled):
        out = topk_step_kl(
            student,
            log_probs,
            ids,
            response_mask=MASK,
            sampled_ids=sampled,
            num_steps=4,
            process_group=group,
            backend="reference",
        )
        return out.loss + out.student_log_probs.mean()

    student, teacher, sampled = make_inputs()
    lists = make_teacher_lists(teacher, 4)
    results = []
    for function in (torch.compile(objective, fullgraph=True, backend="aot_eager"), objective):
        value = function(student, *lists, sampled)
        results.append((value, *torch.autograd.grad(value, student)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.no_cover
def test_compiled_heads_equal_eager(group):
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(6, 3, generator=generator), torch.randn(8, 3, generator=generator)
    lists = torch.randn(6, 8, generator=generator).log_softmax(-1).topk(4)
    steps = torch.tensor([0, 0, 0, 0, 1, 1])

    def loss(hidden, weight, log_probs, ids):
        options = {"num_steps": 2, "chunk_size": 3, "weighting": SodWeighting(), "backend": "reference"}
        return linear_topk_step_kl(hidden, weight, log_probs, ids, steps, process_group=group, **options).loss

    learned = [hidden.requires_grad_(), weight.requires_grad_()]
    results = []
    for function in (torch.compile(loss, fullgraph=True, backend="aot_eager"), loss):
        value = function(*learned, *lists)
        results.append((value, *torch.autograd.grad(value, learned)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)


LISTS = {"teacher_log_probs": torch.zeros(4, 1) - 1.0, "teacher_ids": torch.zeros(4, 1, dtype=torch.int64)}
HEAD = {"student_hidden": torch.zeros(4, 2), "student_weight": torch.zeros(5, 2)}
TEACHER = {"teacher_hidden": torch.zeros(4, 3), "teacher_weight": torch.zeros(5, 3)}


@pytest.mark.parametrize(
    ("function", "good"),
    [
        (topk_step_kl, {"student_logits": torch.zeros(4, 5), **LISTS}),
        (linear_step_kl, HEAD | TEACHER),
        (linear_topk_step_kl, HEAD | LISTS),
    ],
)
class TestBadInput:
    def test_group(self, function, good):
        with pytest.raises(
            TypeError, match=f"^{function.__name__}: process_group is str; wanted a torch.dist"
        ):
            function(**good, process_group="world")

    @pytest.mark.parametrize(
        ("size", "message"),
        [(6, "vocab_size=6; wanted at most 5, the .* of all 1 shards"), (0, "at least 1")],
    )
    def test_vocab_size(self, function, good, size, message, group):
        with pytest.raises(ValueError, match=f"^{function.__name__}: .*{message}"):
            function(**good, process_group=group, vocab_size=size)


@pytest.mark.parametrize(
    ("function", "batch"),
    [
        (step_kl, {"student_logits": torch.zeros(4, 5), "teacher_logits": torch.zeros(4, 5)}),
        (topk_step_kl, {"student_logits": torch.zeros(4, 5), **LISTS}),
        (linear_step_kl, HEAD | TEACHER),
        (linear_topk_step_kl, HEAD | LISTS),
    ],
)
def test_unequal_shards_that_could_not_be_looked_at_name_the_function(function, batch, group, monkeypatch):
    def gather(message, group):
        uneven = message.clone()
        uneven[..., -1] += 1
        return torch.stack([message, uneven])

    monkeypatch.setattr(_collectives, "gather", gather)
    with pytest.raises(RuntimeError, match=f"^{function.__name__}: ranks hold unequal shards"):
        function(**batch, process_group=group)


def test_unequal_shards_of_heads(group):
    odd = {"teacher_hidden": torch.zeros(4, 3), "teacher_weight": torch.zeros(6, 3)}
    with pytest.raises(
        ValueError, match=r"^linear_step_kl: student_weight has 5 rows and teacher_weight 6 of the same shard"
    ):
        linear_step_kl(**HEAD, **odd, process_group=group)


@pytest.mark.parametrize("module", [TopKStepKLLoss, LinearStepKLLoss, LinearTopKStepKLLoss])
def test_modules_keep_the_group_and_check_it(module, group):
    assert module(process_group=group).options["process_group"] is group
    with pytest.raises(TypeError, match=f"^{module.__name__}: process_group is int"):
        module(process_group=3)
