"""Lists in the compiled CPU library against the torch arithmetic that it stands in for."""

import pytest
import torch
from step_kl_inputs import make_inputs
from topk_inputs import DIVERGENCES, TAILS, make_teacher_lists

from sod_kernels import _categories, topk_step_kl
from sod_kernels._checks.topk import MOST_MASS
from sod_kernels.native import lists, loader
from sod_kernels.reference.log_probs import log_probs_forward
from sod_kernels.types import DivergenceSpec, LogProbInputs, LogProbStats

VOCAB, NUM_IDS = 50, 8
STEPS = torch.tensor([0, 0, 1, -1, 1, 2, 2, 2, -1, 3, 3])

pytestmark = pytest.mark.skipif(
    loader.unavailable_reason("cpu") is not None, reason="asks the compiled library"
)


def _awkward_lists(dtype=torch.float32):
    """An id twice and thrice, absent ones with anything beside them, -inf, no list, garbage in no step."""
    _, teacher, _ = make_inputs((len(STEPS), VOCAB), dtype=torch.float32)
    log_probs, ids = (each.clone() for each in make_teacher_lists(3 * teacher, NUM_IDS))
    ids[0, 2] = ids[0, 5]
    ids[1, [0, 3, 6]] = ids[1, 3].clone()
    log_probs[1, [0, 3, 6]] = -3.0
    ids[2, 1], log_probs[2, 1] = -100, torch.nan
    ids[3], log_probs[3] = 1 << 40, torch.nan
    log_probs[4, 2] = -torch.inf
    ids[5] = -1
    log_probs[6, 4] = 0.0
    return log_probs.to(dtype), ids


def _read_by_torch(log_probs, ids):
    return _categories.read_teacher(log_probs, _categories.listed_ids(ids, STEPS >= 0), VOCAB)[0]


def _read(log_probs, ids, most_mass=2.5):
    return lists.read_lists(log_probs, ids, STEPS, vocab_size=VOCAB, most_mass=most_mass)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("id_dtype", [torch.int64, torch.int32])
def test_lists_are_read_as_torch_reads_them(dtype, id_dtype):
    log_probs, ids = _awkward_lists(dtype)
    if id_dtype == torch.int32:
        ids = ids.clamp(max=1 << 30)
    got, wanted = _read(log_probs, ids.to(id_dtype)), _read_by_torch(log_probs, ids)
    assert torch.equal(got.is_there, wanted.is_there)
    assert torch.equal(got.ids.clamp(min=-1), wanted.ids.clamp(min=-1))
    assert torch.equal(got.log_probs, wanted.log_probs)
    # 1 minus a sum: its digits are those of the sum.
    torch.testing.assert_close(got.tail.exp(), wanted.tail.exp(), rtol=0.0, atol=1e-15)
    # Views with strides of their own.
    wide = torch.stack((log_probs, log_probs), -1)[..., 1]
    assert torch.equal(_read(wide, ids.to(id_dtype).mT.contiguous().mT).tail, got.tail)


def test_nobody_reads_what_cannot_be_meant():
    log_probs, ids = _awkward_lists()
    assert _read(log_probs, ids) is not None
    assert _read(log_probs, ids, MOST_MASS) is None
    assert _read(log_probs, ids.index_fill(0, torch.tensor([7]), VOCAB)) is None
    assert _read(log_probs.index_fill(0, torch.tensor([7]), torch.nan), ids) is None


@pytest.mark.parametrize("has_sampled", [False, True])
@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(
    ("divergence", "floor"),
    [*((name, None) for name in DIVERGENCES), ("reverse_kl", -2.5), ("forward_kl", -2.5)],
)
def test_comparison_is_that_of_torch(divergence, floor, tail, has_sampled):
    student, _, sampled = make_inputs((len(STEPS), VOCAB), dtype=torch.float32)
    log_probs, ids = _awkward_lists()
    logits = 2 * student.detach()
    logits[7, ids[7, 0]] = logits[9, ids[9]] = -torch.inf
    logits[10, 3] = torch.nan
    teacher = _read_by_torch(log_probs, ids)
    wanted_ids = torch.cat((teacher.ids, sampled[:, None]), -1) if has_sampled else teacher.ids
    inputs = LogProbInputs(logits[None], STEPS[None], wanted_ids[None], 1.0, VOCAB)
    swept = LogProbStats(*(each[0] for each in log_probs_forward(inputs)))
    spec = DivergenceSpec(
        divergence=divergence, beta=0.3, temperature=1.0, vocab_size=VOCAB, min_log_prob=floor
    )
    arguments = (swept, teacher, sampled if has_sampled else None, STEPS, 4, spec, tail)
    got, wanted = lists.compare_lists(*arguments), _categories.compare_lists(*arguments)
    for name, one, other in zip(got._fields, got, wanted, strict=True):
        assert one.dtype == other.dtype
        # A small tail is 1 minus a sum and has few digits; the rest are float32 numbers and their sums.
        rtol = 1e-9 if name == "slopes" else 3e-7
        torch.testing.assert_close(one, other, rtol=rtol, atol=1e-12, equal_nan=True)
    assert bool(got.token_kl[:-1].isfinite().any())


@pytest.mark.parametrize("name", ["compare_lists", "read_teacher"])
def test_the_reference_is_torch_alone_and_native_is_not(name, monkeypatch):
    def refuse(*arguments):
        raise AssertionError("by torch")

    student, teacher, _ = make_inputs((len(STEPS), VOCAB), dtype=torch.float32)
    monkeypatch.setattr(_categories, name, refuse)
    arguments = (student, *make_teacher_lists(teacher, NUM_IDS), STEPS)
    topk_step_kl(*arguments, backend="native").loss.backward()
    assert float(student.grad.abs().max()) > 0
    with pytest.raises(AssertionError, match="by torch"):
        topk_step_kl(*arguments, backend="reference")


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_equal_sides_differ_by_no_more_than_rounding(divergence):
    student, _, _ = make_inputs((64, VOCAB), dtype=torch.float32)
    lists_of_itself = make_teacher_lists(student.detach(), 20)
    out = topk_step_kl(student, *lists_of_itself, divergence=divergence, backend="native")
    assert float(out.token_kl.detach().max()) < 1e-11
    out.token_kl.sum().backward()
    assert float(student.grad.abs().max()) < 1e-6


def test_any_number_of_threads_gives_the_same_bits(monkeypatch):
    student, teacher, sampled = make_inputs((len(STEPS), VOCAB), dtype=torch.float32)
    arguments = (student, *make_teacher_lists(teacher, NUM_IDS), STEPS)
    results = []
    for num_threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=num_threads: count)
        out = topk_step_kl(*arguments, sampled_ids=sampled, backend="native")
        results.append((out.token_kl, out.step_divergence, *torch.autograd.grad(out.loss, student)))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
