"""`process_group=` in one process: the op under torch's own checks, compiled code, messages."""

import pytest
import torch
from step_kl_inputs import MASK, make_inputs
from torch import distributed as dist

from sod_kernels import SodWeighting, StepKLLoss, step_kl
from sod_kernels.testing import make_case


@pytest.fixture
def group(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.group.WORLD
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize("with_sampled", [True, False])
@pytest.mark.parametrize("with_reference", [True, False])
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
def test_opcheck(group, divergence, with_reference, with_sampled):
    case = make_case(
        "scattered_steps", divergence=divergence, with_sampled=with_sampled, with_reference=with_reference
    )
    case.student_logits.requires_grad_()
    spec = case.spec
    options = (spec.divergence, spec.beta, spec.temperature, spec.vocab_size, spec.min_log_prob, "reference")
    torch.library.opcheck(
        torch.ops.sod_kernels.step_kl_sharded_forward,
        (*case.inputs, case.num_steps, *options, group.group_name),
    )


@pytest.mark.parametrize("options", [{}, {"divergence": "jsd", "beta": 0.3}, {"min_log_prob": -2.0}], ids=str)
def test_a_group_of_one_is_no_group(group, options):
    student, teacher, sampled = make_inputs()
    batch = {"response_mask": MASK, "sampled_ids": sampled, "weighting": SodWeighting(), **options}
    results = []
    for process_group in (None, group):
        out = step_kl(student, teacher, process_group=process_group, **batch)
        mixed = out.loss + out.student_log_probs.sum() - out.student_entropy.sum()
        results.append((out.token_kl, out.teacher_log_probs, mixed, *torch.autograd.grad(mixed, student)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-14)


def test_empty_batches_and_double_backward(group):
    student = torch.zeros(0, 5, requires_grad=True)
    step_kl(student, torch.zeros(0, 5), process_group=group).loss.backward()
    assert student.grad.shape == (0, 5)
    student, teacher, _ = make_inputs()
    (grad,) = torch.autograd.grad(
        step_kl(student, teacher, process_group=group).loss, student, create_graph=True
    )
    with pytest.raises(RuntimeError, match="create_graph=True"):
        grad.sum().backward()


@pytest.mark.no_cover
def test_compiled_equals_eager(group):
    torch._dynamo.reset()

    def objective(student, teacher, sampled):
        out = step_kl(
            student,
            teacher,
            response_mask=MASK,
            sampled_ids=sampled,
            num_steps=4,
            process_group=group,
            backend="reference",
        )
        return out.loss + out.student_log_probs.mean()

    student, teacher, sampled = make_inputs()
    compiled = torch.compile(objective, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, objective):
        value = function(student, teacher, sampled)
        results.append((value, *torch.autograd.grad(value, student)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted)


def test_compiled_code_asserts_equal_shards(group, monkeypatch):
    def gather_two(parts, tensor, group):
        for part in parts:
            part.copy_(tensor)
            part[..., -1] += 1

    student, teacher, _ = make_inputs()
    monkeypatch.setattr(dist, "all_gather", gather_two)
    ids = torch.zeros(2, 7, dtype=torch.int64)
    arguments = (student, teacher, None, ids, None, 1, "reverse_kl", 0.5, 1.0, 11, None, "reference")
    with pytest.raises(RuntimeError, match="step_kl: ranks hold unequal shards"):
        torch.ops.sod_kernels.step_kl_sharded_forward(*arguments, group.group_name)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"process_group": "world"},
            TypeError,
            "process_group is str; wanted a torch.distributed.ProcessGro",
        ),
        (
            {"teacher_logits": torch.zeros(2, 3, 4)},
            ValueError,
            "has 5 columns and teacher_logits 4 of the sam",
        ),
        ({"reference_logits": torch.zeros(2, 3, 6)}, ValueError, "5 columns and reference_logits 6 of the"),
        ({"teacher_logits": torch.zeros(2, 5)}, ValueError, r"teacher_logits has shape \(2, 5\); wanted"),
        ({"vocab_size": 6}, ValueError, "vocab_size=6; wanted at most 5, the columns of all 1 shards"),
        ({"vocab_size": 0}, ValueError, "vocab_size=0; wanted at least 1"),
        ({"vocab_size": 2.0}, TypeError, "vocab_size is float; wanted an integer"),
        ({"sampled_ids": torch.full((2, 3), 5)}, ValueError, "sampled_ids holds 5"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_input(group, change, error, message):
    logits = torch.zeros(2, 3, 5)
    arguments = {"student_logits": logits, "teacher_logits": logits, "process_group": group, **change}
    with pytest.raises(error, match=f"^step_kl: .*{message}|^step_kl: {message}"):
        step_kl(**arguments)


def test_a_group_that_is_gone_is_refused(group):
    dist.destroy_process_group()
    with pytest.raises(
        ValueError, match=r"^step_kl: process_group is of a torch.distributed that is not init"
    ):
        step_kl(torch.zeros(3, 5), torch.zeros(3, 5), process_group=group)


def test_a_torch_without_distributed_is_refused(group, monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^step_kl: process_group= with a torch that was built without"):
        step_kl(torch.zeros(3, 5), torch.zeros(3, 5), process_group=group)


def test_module_keeps_the_group_and_checks_it(group):
    student, teacher, _ = make_inputs()
    ours = StepKLLoss(process_group=group, backend="reference")(student, teacher).loss
    torch.testing.assert_close(ours, step_kl(student, teacher, backend="reference").loss)
    with pytest.raises(TypeError, match=r"^StepKLLoss: process_group is int"):
        StepKLLoss(process_group=3)
    assert "process_group=" in repr(StepKLLoss(process_group=group))
