"""No tensor of rows by columns is ever made, and nothing is multiplied twice."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sod_kernels import SodWeighting, TurnWeighting, linear_step_kl, linear_topk_step_kl
from sod_kernels.linear import ops, single
from sod_kernels.linear import plan as plan_module
from sod_kernels.linear.plan import make_plan

NUM_COLUMNS = 400


class _Spy(TorchDispatchMode):
    """Notes the largest tensor that any operation returned, and the multiplications of matrix products."""

    def __init__(self):
        super().__init__()
        self.entries = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else (result,):
            if isinstance(each, torch.Tensor):
                self.entries = max(self.entries, each.untyped_storage().nbytes() // 4)
        if func._opname in ("addmm", "addmm_", "mm"):
            left, right = [arg for arg in args if isinstance(arg, torch.Tensor)][-2:]
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
        return result


@pytest.fixture
def spy(monkeypatch):
    """A spy inside the custom ops, which hide what they do from one that is outside."""
    spy = _Spy()

    def watched(run):
        def run_watched(*arguments):
            with spy:
                return run(*arguments)

        return run_watched

    for name in ("run_single_sweep", "run_forward", "run_backward"):
        monkeypatch.setattr(ops, name, watched(getattr(ops, name)))
    return spy


@pytest.mark.parametrize(
    "options",
    [
        {"weighting": SodWeighting()},
        {"weighting": SodWeighting(), "entropy_coefficient": 0.1, "student_softcap": 5.0},
        {"weighting": TurnWeighting()},
        {"single_sweep": False},
    ],
)
def test_largest_tensor_does_not_grow_with_the_rows(options, spy):
    # The buffers of a chunk, a spare one included.
    allowed = 8 * NUM_COLUMNS * 3
    for num_rows in (240, 480):
        generator = torch.Generator().manual_seed(0)
        hidden, teacher = torch.randn(2, num_rows, 3, generator=generator)
        weight, teacher_weight = torch.randn(2, NUM_COLUMNS, 3, generator=generator)
        out = linear_step_kl(
            hidden.requires_grad_(),
            weight.requires_grad_(),
            teacher,
            teacher_weight,
            torch.arange(num_rows) // 90,
            chunk_size=8,
            backend="reference",
            **options,
        )
        out.loss.backward()
        assert hidden.grad.any()
        assert 0 < spy.entries <= allowed < num_rows * NUM_COLUMNS / 9


def test_nothing_is_multiplied_twice(spy):
    rows, active, size, teacher_size = 300, 200, 4, 6
    ids = torch.full((rows,), -1)
    ids[50 : 50 + active] = torch.arange(active) // 33
    heads = [torch.randn(rows, size), torch.randn(NUM_COLUMNS, size)]
    teacher = [torch.randn(rows, teacher_size), torch.randn(NUM_COLUMNS, teacher_size)]
    plan = make_plan(ids, 7, chunk_size=16, keeps_steps_whole=True)
    assert any(chunk.num_open for chunk in plan.chunks)
    for learned, wanted in (((0, 1), 3 * size), ((0,), 2 * size), ((), size)):
        spy.products = 0
        student = [each.clone().requires_grad_(number in learned) for number, each in enumerate(heads)]
        linear_step_kl(*student, *teacher, ids, weighting=SodWeighting(), chunk_size=16, backend="reference")
        assert spy.products == active * NUM_COLUMNS * (wanted + teacher_size)


class _Sizes(TorchDispatchMode):
    """Notes the entries of everything that is made, not of what is changed in place or seen once more."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._opname not in ("mul_", "detach") and isinstance(result, torch.Tensor):
            self.made.append(result.numel())
        return result


@pytest.mark.parametrize("factor", [1.0, 3.0])
def test_gradient_of_the_head_is_made_once_and_handed_over(factor, monkeypatch):
    run, made = ops.run_single_sweep, []

    def noted(*arguments):
        result = run(*arguments)
        made.append(result.grad_weight.data_ptr())
        return result

    monkeypatch.setattr(ops, "run_single_sweep", noted)
    hidden, weight = torch.randn(20, 6, requires_grad=True), torch.randn(NUM_COLUMNS, 6, requires_grad=True)
    out = linear_step_kl(hidden, weight, torch.randn(20, 5), torch.randn(NUM_COLUMNS, 5), backend="reference")
    loss = factor * out.loss
    with _Sizes() as sizes:
        loss.backward()
    # Neither a copy nor zeros of its size come into being, and the leaf takes the very memory.
    assert max(sizes.made, default=0) < weight.numel()
    assert [weight.grad.data_ptr()] == made


def _run_noting_waits(chunk_size, monkeypatch):
    """Gradients of a batch with two steps longer than a chunk of 16, and what waited for a weight then."""
    generator = torch.Generator().manual_seed(0)
    # At this hidden size a chunk of 16 rows may grow by 20.
    heads = [torch.randn(rows, 40, generator=generator, dtype=torch.float64) for rows in (80, 30) * 2]
    student = [each.requires_grad_() for each in heads[:2]]
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor([4, 30, 30, 16]))
    wait, waited = single._Gradients.wait, []

    def noted(self, part, *arguments):
        waited.append(part)
        wait(self, part, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(plan_module, "_CHUNK_BYTES", {"cpu": 0})
        patch.setattr(single._Gradients, "wait", noted)
        out = linear_step_kl(*student, *heads[2:], ids, weighting=SodWeighting(), chunk_size=chunk_size)
    return torch.autograd.grad(out.loss, student), waited


def test_a_long_step_makes_its_chunk_longer_where_that_takes_less_memory(monkeypatch):
    whole, nothing = _run_noting_waits(None, monkeypatch)
    cut, waited = _run_noting_waits(16, monkeypatch)
    assert (len(nothing), len(waited) > 0) == (0, True)
    for ours, wanted in zip(whole, cut, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("single_sweep", [True, False])
def test_a_teacher_known_by_lists_needs_the_students_head_alone(single_sweep, spy):
    num_rows, size, k = 240, 3, 5
    ids = torch.arange(num_rows) // 90
    student = torch.randn(num_rows, size, requires_grad=True), torch.randn(NUM_COLUMNS, size)
    log_probs, listed = torch.randn(num_rows, NUM_COLUMNS).log_softmax(-1).topk(k)
    out = linear_topk_step_kl(
        *student,
        log_probs,
        listed,
        ids,
        weighting=SodWeighting(),
        chunk_size=8,
        single_sweep=single_sweep,
        backend="reference",
    )
    out.loss.backward()
    # One buffer of a chunk; the definition's float64 of one chunk counts twice.
    assert 0 < spy.entries <= 2 * 8 * NUM_COLUMNS < num_rows * NUM_COLUMNS / 9
    assert spy.products == num_rows * NUM_COLUMNS * size * (2 if single_sweep else 3)
