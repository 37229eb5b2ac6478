"""The Triton kernels against the float64 truth: under the interpreter without a GPU, compiled with one."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import sod_kernels
from sod_kernels.testing import (
    CASE_REASONS,
    check_backend_forward_backward,
    check_issue_targets,
    make_case,
    nan_filled_empty,
    truth,
)
from sod_kernels.triton import backend
from sod_kernels.triton.config import SweepConfig

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIVERGENCES = ("reverse_kl", "forward_kl", "jsd")
SMALL = [name for name in CASE_REASONS if name != "full_vocab"]
# What can go wrong in a dtype of its own: rounding, tails, several blocks, infinities, far shifts.
PER_DTYPE = (
    "odd_width",
    "several_blocks",
    "near_equal",
    "student_excludes",
    "shifted_some_rows",
    "warm",
)
# Full rounds, a masked rest, lanes of several vectors and four programs to a row, in a small vocabulary.
NARROW = SweepConfig(block_size=256, lanes=32, splits=4, num_warps=1)
narrow_backend = SimpleNamespace(
    forward=partial(backend.forward, config=NARROW), backward=partial(backend.backward, config=NARROW)
)


def run_forward(case, module=backend):
    rows = (case.student_logits, case.teacher_logits, case.step_ids, case.sampled_ids)
    return module.forward(*rows, case.num_steps, case.spec)


def run_backward(case, stats, upstream, module=backend):
    rows = (case.student_logits, case.teacher_logits, case.step_ids, case.sampled_ids)
    saved = (stats.student_lse, stats.teacher_lse, stats.kl_aux, stats.student_entropy)
    return module.backward(*upstream, *rows, *saved, case.spec)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", SMALL)
def test_matches_the_truth(name, divergence):
    check_backend_forward_backward(backend, make_case(name, divergence=divergence, device=DEVICE))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", PER_DTYPE)
def test_matches_the_truth_in_other_dtypes(name, dtype):
    divergence = DIVERGENCES[PER_DTYPE.index(name) % 3]
    check_backend_forward_backward(
        backend, make_case(name, divergence=divergence, dtype=dtype, device=DEVICE)
    )


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize(
    "name", ["plain", "one_column", "peaked", "shifted", "bad_rows", "disjoint", "equal"]
)
def test_floor_under_the_log_probs(name, divergence):
    case = make_case(name, divergence=divergence, min_log_prob=-6.0, device=DEVICE)
    check_backend_forward_backward(backend, case)


@pytest.mark.parametrize("name", ["plain", "scattered_steps", "no_tokens"])
def test_works_without_sampled_ids(name):
    check_backend_forward_backward(backend, make_case(name, with_sampled=False, device=DEVICE))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    "name", ["odd_width", "leading_block", "padded_vocab", "teacher_excludes", "shifted"]
)
def test_result_holds_however_a_row_is_cut(name, divergence):
    check_backend_forward_backward(narrow_backend, make_case(name, divergence=divergence, device=DEVICE))


@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_infinite_row_in_one_program_survives_the_merge(divergence):
    # The excluded column lies in the first block; other programs and a later round of its own lift the
    # maximum by so much that what it had summed is multiplied by a weight of 0.
    case = make_case("odd_width", divergence=divergence, device=DEVICE)
    student, teacher = case.student_logits.clone(), case.teacher_logits.clone()
    excluding, other = (teacher, student) if divergence == "reverse_kl" else (student, teacher)
    excluding[..., 3] = -torch.inf
    other[..., 600:] += 200.0
    case = replace(case, student_logits=student, teacher_logits=teacher)
    assert bool((truth(case).token_kl[case.step_ids >= 0] == torch.inf).all())
    check_backend_forward_backward(narrow_backend, case)
    check_backend_forward_backward(backend, case)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_promised_accuracy_at_a_real_vocabulary(divergence):
    check_issue_targets(backend, make_case("full_vocab", divergence=divergence, device=DEVICE))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_gradient_of_a_small_divergence_alone(divergence, temperature):
    # Upstream gradients of the other outputs would hide it: here the gradient itself is the difference p - q.
    case = make_case("near_equal", divergence=divergence, device=DEVICE)
    case = replace(
        case,
        spec=replace(case.spec, temperature=temperature),
        grad_token_kl=torch.ones_like(case.grad_token_kl),
        grad_student_log_probs=torch.zeros_like(case.grad_student_log_probs),
        grad_student_entropy=torch.zeros_like(case.grad_student_entropy),
    )
    check_issue_targets(backend, case)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_gradient_is_within_one_unit_in_the_last_place(divergence):
    case = make_case("plain", divergence=divergence, dtype=torch.bfloat16, device=DEVICE)
    upstream = (case.grad_token_kl, case.grad_student_log_probs, case.grad_student_entropy)
    ours = run_backward(case, run_forward(case), upstream).double()
    exact = truth(case).grad_student_logits
    # bfloat16 has 8 significant bits. The additive part is for entries that cancel to nothing in float32.
    unit = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 7)
    assert bool(((ours - exact).abs() <= unit + 1e-6).all())


def test_a_row_gives_the_same_bits_in_any_batch():
    case = make_case("several_blocks", device=DEVICE)
    whole = run_forward(case)
    for row in range(case.step_ids.shape[1]):
        one = (slice(None), slice(row, row + 1))
        part = replace(
            case,
            student_logits=case.student_logits[one],
            teacher_logits=case.teacher_logits[one],
            step_ids=case.step_ids[one].contiguous(),
            sampled_ids=case.sampled_ids[one].contiguous(),
        )
        for ours, alone in zip(whole[:7], run_forward(part)[:7], strict=True):
            assert torch.equal(ours[one], alone)


def test_upstream_gradients_may_be_expanded_scalars():
    case = make_case("plain", device=DEVICE)
    stats = run_forward(case)
    one = torch.ones((), device=DEVICE)
    shape = case.step_ids.shape
    expanded = run_backward(case, stats, [one.expand(shape)] * 3)
    assert torch.equal(expanded, run_backward(case, stats, [torch.ones(shape, device=DEVICE)] * 3))


@pytest.mark.parametrize(("shape", "num_steps"), [((1, 0), 0), ((0, 4), 3), ((2, 0), 2)])
def test_no_rows_at_all(shape, num_steps):
    case = make_case("plain", device=DEVICE)
    logits = torch.empty((*shape, 37), device=DEVICE)
    ids = torch.empty(shape, dtype=torch.int64, device=DEVICE)
    case = replace(case, student_logits=logits, teacher_logits=logits.clone(), step_ids=ids, sampled_ids=ids)
    with nan_filled_empty():
        stats = run_forward(replace(case, num_steps=num_steps))
        grad = run_backward(case, stats, [torch.empty(shape, device=DEVICE)] * 3)
    assert grad.shape == logits.shape
    assert torch.equal(stats.step_sums, torch.zeros_like(stats.step_sums))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_kl_agrees_with_the_reference(divergence, dtype):
    case = make_case("label_shift", divergence=divergence, dtype=dtype, device=DEVICE)
    results = []
    for name in ("reference", "triton"):
        student = case.student_logits.detach().clone().requires_grad_()
        output = sod_kernels.step_kl(
            student,
            case.teacher_logits,
            case.step_ids,
            sampled_ids=case.sampled_ids,
            divergence=divergence,
            temperature=0.7,
            weighting=sod_kernels.SodWeighting(),
            backend=name,
        )
        assert output.backend == name
        objective = output.loss + 0.3 * output.student_log_probs.sum() - 0.1 * output.student_entropy.sum()
        (grad,) = torch.autograd.grad(objective, student)
        results.append((output.loss, output.step_divergence, output.step_weights, grad))
    for reference, ours in zip(*results, strict=True):
        tolerance = 1e-2 if ours.dtype == torch.bfloat16 else 2e-6
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_graph_replays_forward_and_backward(divergence):
    case = make_case("several_blocks", divergence=divergence, device=DEVICE)
    upstream = (case.grad_token_kl, case.grad_student_log_probs, case.grad_student_entropy)

    def step():
        stats = run_forward(case)
        return (*stats, run_backward(case, stats, upstream))

    wanted = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.fill_(-1.0)
    graph.replay()
    torch.cuda.synchronize()
    for ours, eager in zip(captured, wanted, strict=True):
        assert torch.equal(ours, eager)


def test_says_where_it_cannot_run(monkeypatch):
    assert "not on mps" in backend.availability("mps")
    if not torch.cuda.is_available():
        assert "torch.cuda.is_available() is False" in backend.availability("cuda")
        assert backend.availability("cpu") is None
    monkeypatch.setattr("triton.__version__", "3.5.1")
    assert "Triton 3.5.1 is older than 3.6" in backend.availability("cuda")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Triton is not installed" in backend.availability("cuda")


def test_says_that_cpu_tensors_need_the_interpreter(clean_environment):
    program = "from sod_kernels.triton.backend import availability; print(availability('cpu'))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=clean_environment, capture_output=True, text=True, check=True)
    assert "only if TRITON_INTERPRET=1 is set before it is imported" in result.stdout
