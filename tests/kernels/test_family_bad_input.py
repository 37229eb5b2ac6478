"""No NaN and no wrong number from awkward input, for every function of the family and every backend here."""

import pytest
import torch

from sod_kernels import (
    SodWeighting,
    linear_step_kl,
    linear_topk_step_kl,
    step_kl,
    token_log_probs,
    topk_step_kl,
)
from sod_kernels.native.backend import availability

NUM_ROWS, NUM_COLUMNS = 6, 9
STEPS = torch.tensor([0, 0, -1, 2, 2, 3])
SAMPLED = torch.tensor([0, 2, -100, 3, 0, 1])
needs_native = pytest.mark.skipif(availability("cpu") is not None, reason=str(availability("cpu")))
# Triton's kernels meet the same oddities in the kit's cases; under the interpreter they are slow.
BACKENDS = ["reference", pytest.param("native", marks=needs_native)]
# Finite numbers of both sides come from one generator; what is added to their columns makes the case.
EXCLUDED = torch.zeros(NUM_COLUMNS)
EXCLUDED[4:7] = -torch.inf
OFFSET = torch.full((NUM_COLUMNS,), 1e4)
CASES = {
    "plain": (torch.zeros(NUM_COLUMNS), torch.zeros(NUM_COLUMNS)),
    "student excludes": (EXCLUDED, torch.zeros(NUM_COLUMNS)),
    "teacher excludes": (torch.zeros(NUM_COLUMNS), EXCLUDED),
    "both exclude": (EXCLUDED, EXCLUDED),
    "far above": (OFFSET, OFFSET),
    "far below": (-OFFSET, -OFFSET),
    "one column": (torch.zeros(1), torch.zeros(1)),
}


def make_sides(name):
    """Rounded to float32 once, so that logits and heads hold the same numbers; the teacher's are the same."""
    generator = torch.Generator().manual_seed(2)
    columns = CASES[name]
    finite = 2.0 * torch.randn(2, NUM_ROWS, columns[0].numel(), generator=generator)
    sampled = SAMPLED if columns[0].numel() > 1 else SAMPLED.clamp(max=0)
    return finite, columns, sampled


class Call:
    """One function over the same distributions: what it gives, and the gradient of the student's logits.

    Heads are the logits themselves: hidden states are the rows of the identity.
    """

    def __init__(self, function, finite, columns, *, is_head):
        self.function = function
        self.student = (finite[0] if is_head else finite[0] + columns[0]).requires_grad_()
        self.columns, self.is_head = columns, is_head
        self.teacher = finite[1] + columns[1]
        self.finite_teacher = finite[1]

    def __call__(self, steps, sampled, **options):
        identity = torch.eye(self.student.shape[0])
        lists = self.teacher.double().log_softmax(-1).float()
        ids = torch.arange(lists.shape[-1]).expand(lists.shape)
        if self.is_head:
            options |= {"student_bias": self.columns[0], "chunk_size": 2, "single_sweep": False}
            head = (identity, self.student.T)
        if self.function is step_kl:
            arguments = (self.student, self.teacher)
        elif self.function is topk_step_kl:
            arguments = (self.student, lists, ids)
        elif self.function is linear_step_kl:
            options["teacher_bias"] = self.columns[1]
            arguments = (*head, identity, self.finite_teacher.T)
        else:
            arguments = (*head, lists, ids)
        out = self.function(*arguments, steps, sampled_ids=sampled, **options)
        total = out.loss + out.student_entropy.sum() + 0.1 * out.token_kl.sum()
        return out, torch.autograd.grad(total, self.student)[0]


FAMILY = {
    "step_kl": (step_kl, False),
    "topk_step_kl": (topk_step_kl, False),
    "linear_step_kl": (linear_step_kl, True),
    "linear_topk_step_kl": (linear_topk_step_kl, True),
}
FIELDS = ("loss", "token_kl", "student_entropy", "step_divergence", "step_weights", "student_log_probs")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", FAMILY)
def test_the_family_agrees_and_gives_numbers(function, backend, name):
    finite, columns, sampled = make_sides(name)
    # A floor keeps what a side excludes finite; step 1 has no token, row 2 is in no step.
    options = {"min_log_prob": -20.0, "weighting": SodWeighting(), "num_steps": 5}
    call, is_head = FAMILY[function]
    out, gradient = Call(call, finite.clone(), columns, is_head=is_head)(
        STEPS, sampled, backend=backend, **options
    )
    student, teacher = ((each + column).double() for each, column in zip(finite, columns, strict=True))
    student.requires_grad_()
    exact = step_kl(student, teacher, STEPS, sampled_ids=sampled, backend="reference", **options)
    total = exact.loss + exact.student_entropy.sum() + 0.1 * exact.token_kl.sum()
    (wanted,) = torch.autograd.grad(total, student)
    assert out.backend == backend
    for field in FIELDS:
        value = getattr(exact, field)
        if field == "student_log_probs":
            assert not bool(getattr(out, field).isnan().any())
        torch.testing.assert_close(getattr(out, field).double(), value.detach(), rtol=2e-4, atol=2e-5)
    torch.testing.assert_close(gradient.double(), wanted, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl", "jsd"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", FAMILY)
def test_infinite_is_not_nan(function, backend, divergence):
    finite, _, _ = make_sides("plain")
    other = torch.zeros(NUM_COLUMNS)
    other[0] = -torch.inf
    call, is_head = FAMILY[function]
    call = Call(call, finite, (EXCLUDED, other), is_head=is_head)
    out, gradient = call(STEPS, None, divergence=divergence, backend=backend, weighting=SodWeighting())
    active = STEPS >= 0
    assert bool(out.token_kl[active].isinf().all()) == (divergence != "jsd")
    assert not bool(out.token_kl.isnan().any())
    assert bool(gradient.isfinite().all())
    assert bool((gradient[~active] == 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("function", "num_rows"),
    # Heads that are the logits themselves have as many hidden units as rows, at least one.
    [(name, rows) for name, (_, is_head) in FAMILY.items() for rows in ((3,) if is_head else (0, 3))],
)
def test_nothing_in_a_step_is_not_read(function, backend, num_rows):
    call, is_head = FAMILY[function]
    rows = torch.full((2, num_rows, NUM_COLUMNS), torch.nan)
    call = Call(call, rows, (torch.zeros(NUM_COLUMNS),) * 2, is_head=is_head)
    steps = torch.full((num_rows,), -1)
    for reduction in ("token_mean", "step_mean", "sequence_mean", "sum"):
        out, gradient = call(
            steps, None, num_steps=2, backend=backend, weighting=SodWeighting(), reduction=reduction
        )
        assert float(out.loss.detach()) == 0.0
        assert out.step_weights.tolist() == [0.0, 0.0]
        assert out.step_tokens.tolist() == [0, 0]
        assert not bool(gradient.any())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", FAMILY)
def test_strides_do_not_matter(function, backend):
    call, is_head = FAMILY[function]
    finite, columns, sampled = make_sides("plain")
    out, gradient = Call(call, finite.clone(), columns, is_head=is_head)(STEPS, sampled, backend=backend)
    every_other = torch.full((2, 2 * NUM_ROWS, NUM_COLUMNS + 3), torch.nan)[:, ::2, 1 : 1 + NUM_COLUMNS]
    transposed = torch.empty(2, NUM_COLUMNS, NUM_ROWS).transpose(1, 2)
    for memory in (every_other, transposed):
        memory.copy_(finite)
        strided = Call(call, memory, columns, is_head=is_head)
        strided.student = memory[0].detach().requires_grad_()
        if not is_head:
            strided.teacher = memory[1]
        again, its_gradient = strided(STEPS, sampled, backend=backend)
        torch.testing.assert_close(again.loss, out.loss, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(its_gradient, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_log_probs_are_numbers(backend, name):
    finite, columns, _ = make_sides(name)
    student = (finite[0] + columns[0]).requires_grad_()
    ids = torch.arange(student.shape[-1]).expand(student.shape).clone()
    ids[1] = -1
    out = token_log_probs(student, ids, backend=backend)
    is_there = (ids >= 0) & (student > -torch.inf)
    exact = torch.where(ids >= 0, student.detach().double().log_softmax(-1), 0.0)
    torch.testing.assert_close(out.log_probs.double(), exact, rtol=2e-4, atol=2e-5)
    total = torch.where(is_there, out.log_probs, 0.0).sum() + out.entropy.sum()
    (gradient,) = torch.autograd.grad(total, student)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_more_than_two_to_the_31_entries_apart(backend):
    # Memory that is reserved and hardly touched: a stride of 32 bits, and rows further apart than that. Of
    # Triton's kernels `make aot` checks the width of every row's offset.
    stride, columns = 1 << 30, 64
    memory = torch.empty(2 * stride + columns, dtype=torch.bfloat16)
    far = memory.as_strided((3, columns), (stride, 1))
    near = torch.randn(3, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    far.copy_(near)
    ids = torch.tensor([[1], [63], [7]])
    steps = torch.tensor([0, 1, 1])
    results = []
    for logits in (far, near):
        student = logits.detach().requires_grad_()
        # The gradient is dense in the rows that there are, so it takes no more than they do.
        out = step_kl(student, logits.flip(0) if logits is near else near.flip(0), steps, backend=backend)
        listed = token_log_probs(student, ids, backend=backend)
        results.append((out.token_kl.detach(), out.student_entropy.detach(), listed.log_probs.detach()))
        results[-1] += torch.autograd.grad(out.loss + listed.log_probs.sum(), student)
    for ours, wanted in zip(*results, strict=True):
        assert torch.equal(ours, wanted)
