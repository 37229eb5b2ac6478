"""The Triton kernels against the float64 truth: under the interpreter without a GPU, compiled with one."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import sod_kernels
from sod_kernels.reference import backend as reference_backend
from sod_kernels.testing import (
    CASE_REASONS,
    check_backend_forward_backward,
    check_backend_log_prob_shards,
    check_backend_log_probs,
    check_backend_shards,
    check_backend_single_visit,
    check_issue_targets,
    make_case,
    make_log_prob_inputs,
    truth,
)
from sod_kernels.triton import backend
from sod_kernels.triton.config import LOG_PROB_BLOCK, SweepConfig

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
# A float64 log-sum-exp of 10,000 has steps of 2e-12, and there is no wider number to keep the rest in.
OTHER_DTYPES = [
    (name, dtype)
    for name in PER_DTYPE
    for dtype in (torch.bfloat16, torch.float16, torch.float64)
    if (name, dtype) != ("shifted_some_rows", torch.float64)
]
# Every way a second target can go wrong, each divergence beside it in turn.
WITH_REFERENCE = {
    ("odd_width", "reverse_kl"),
    ("bad_rows", "forward_kl"),
    ("teacher_excludes", "jsd"),
    ("teacher_excludes", "reverse_kl"),
    ("padded_vocab", "forward_kl"),
    ("label_shift", "jsd"),
    ("shared_teacher", "reverse_kl"),
    ("shifted", "forward_kl"),
    ("garbage_outside", "reverse_kl"),
    ("equal", "jsd"),
}
# The cases that differ in the student, which is all that the log-prob sweeps read.
STUDENT_ALONE = (
    "one_column",
    "odd_width",
    "several_blocks",
    "no_tokens",
    "scattered_steps",
    "peaked",
    "shifted",
    "shifted_some_rows",
    "student_excludes",
    "leading_block",
    "bad_rows",
    "garbage_outside",
    "padded_vocab",
    "label_shift",
    "cool",
)
# Full rounds, a masked rest, lanes of several vectors and four programs to a row, in a small vocabulary.
NARROW = SweepConfig(block_size=256, lanes=32, splits=4, num_warps=1)
narrow_backend = SimpleNamespace(
    **{
        name: partial(getattr(backend, name), config=NARROW)
        for name in ("forward", "backward", "log_probs_forward", "log_probs_backward")
    }
)


def run_forward(case, module=backend):
    return module.forward(case.inputs, case.num_steps, case.spec)


@pytest.mark.no_cover
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    "name", ["plain", "disjoint", "padded_vocab", "leading_block", "bad_rows", "floored"]
)
def test_shards_of_a_row_are_the_whole(name, divergence):
    check_backend_shards(
        backend, make_case(name, divergence=divergence, with_reference=True, device=DEVICE), 2
    )


@pytest.mark.parametrize("name", ["plain", "disjoint", "padded_vocab", "leading_block", "bad_rows"])
def test_log_probs_of_shards_are_those_of_the_whole(name):
    check_backend_log_prob_shards(backend, make_case(name, device=DEVICE), 2)


@pytest.mark.no_cover
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("name", SMALL)
def test_matches_the_truth(name, divergence):
    with_reference = (name, divergence) in WITH_REFERENCE
    case = make_case(name, divergence=divergence, device=DEVICE, with_reference=with_reference)
    check_backend_forward_backward(backend, case)


@pytest.mark.no_cover
@pytest.mark.parametrize(("name", "dtype"), OTHER_DTYPES, ids=str)
def test_matches_the_truth_in_other_dtypes(name, dtype):
    divergence = DIVERGENCES[PER_DTYPE.index(name) % 3]
    case = make_case(name, divergence=divergence, dtype=dtype, device=DEVICE, with_reference=True)
    check_backend_forward_backward(backend, case)


def test_second_target_leaves_the_first_alone():
    case = make_case("plain", divergence="jsd", device=DEVICE, with_reference=True)
    without = replace(case, reference_logits=None)
    both, alone = run_forward(case), run_forward(without)
    assert both.token_reference_kl.shape == case.step_ids.shape
    for name in ("token_kl", "student_log_probs", "teacher_log_probs", "student_entropy", "step_sums"):
        assert torch.equal(getattr(both, name), getattr(alone, name))
    assert torch.equal(both.row_state[..., :5], alone.row_state[..., :5])


@pytest.mark.no_cover
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
@pytest.mark.parametrize(
    ("name", "with_reference"),
    [
        ("plain", True),
        ("one_column", False),
        ("peaked", True),
        ("shifted", False),
        ("bad_rows", True),
        ("disjoint", True),
        ("equal", False),
    ],
)
def test_floor_under_the_log_probs(name, with_reference, divergence):
    case = make_case(
        name, divergence=divergence, min_log_prob=-6.0, device=DEVICE, with_reference=with_reference
    )
    check_backend_forward_backward(backend, case)


@pytest.mark.parametrize("name", ["plain", "scattered_steps", "no_tokens"])
def test_works_without_sampled_ids(name):
    check_backend_forward_backward(backend, make_case(name, with_sampled=False, device=DEVICE))


def test_both_sweeps_in_one_call():
    check_backend_single_visit(backend, make_case("odd_width", with_reference=True, device=DEVICE))


@pytest.mark.no_cover
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize(
    "name", ["odd_width", "leading_block", "padded_vocab", "teacher_excludes", "shifted"]
)
def test_result_holds_however_a_row_is_cut(name, divergence):
    with_reference = name in ("odd_width", "padded_vocab")
    case = make_case(name, divergence=divergence, device=DEVICE, with_reference=with_reference)
    check_backend_forward_backward(narrow_backend, case)


@pytest.mark.no_cover
@pytest.mark.parametrize("divergence", ["reverse_kl", "forward_kl"])
def test_floor_holds_however_a_row_is_cut(divergence):
    case = make_case(
        "odd_width", divergence=divergence, min_log_prob=-6.0, device=DEVICE, with_reference=True
    )
    check_backend_forward_backward(narrow_backend, case)


@pytest.mark.no_cover
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


@pytest.mark.no_cover
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_promised_accuracy_at_a_real_vocabulary(divergence):
    check_issue_targets(backend, make_case("full_vocab", divergence=divergence, device=DEVICE))


@pytest.mark.no_cover
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


@pytest.mark.no_cover
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_gradient_far_from_zero_is_as_good_as_near_it(divergence):
    # A float32 log-sum-exp near 10,000 has steps of 1e-3; the float64 row state keeps what they would lose.
    near = make_case("near_equal", divergence=divergence, device=DEVICE)
    # Few bits in the logits, so that the shift itself loses nothing.
    student, teacher = ((side * 1024).round() / 1024 for side in (near.student_logits, near.teacher_logits))
    near = replace(near, student_logits=student, teacher_logits=teacher)
    far = replace(near, student_logits=student + 8192.0, teacher_logits=teacher - 4096.0)
    check_issue_targets(backend, far)
    ours, wanted = (
        backend.backward(case.upstream, case.inputs, run_forward(case).row_state, case.spec).double()
        for case in (far, near)
    )
    assert float((ours - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.no_cover
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_bfloat16_gradient_is_within_one_unit_in_the_last_place(divergence):
    case = make_case("plain", divergence=divergence, dtype=torch.bfloat16, device=DEVICE)
    state = run_forward(case).row_state
    ours = backend.backward(case.upstream, case.inputs, state, case.spec).double()
    exact = truth(case).grad_student_logits
    # bfloat16 has 8 significant bits. The additive part is for entries that cancel to nothing in float32.
    unit = torch.exp2(torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 7)
    assert bool(((ours - exact).abs() <= unit + 1e-6).all())


def test_a_row_gives_the_same_bits_in_any_batch():
    case = make_case("several_blocks", device=DEVICE, with_reference=True)
    whole = run_forward(case)
    for row in range(case.step_ids.shape[1]):
        one = (slice(None), slice(row, row + 1))
        part = replace(
            case,
            student_logits=case.student_logits[one],
            teacher_logits=case.teacher_logits[one],
            reference_logits=case.reference_logits[one],
            step_ids=case.step_ids[one].contiguous(),
            sampled_ids=case.sampled_ids[one].contiguous(),
        )
        for ours, alone in zip(whole[:6], run_forward(part)[:6], strict=True):
            assert torch.equal(ours[one], alone)


@pytest.mark.no_cover
@pytest.mark.parametrize("name", STUDENT_ALONE)
def test_log_probs_match_the_truth(name):
    check_backend_log_probs(backend, make_case(name, device=DEVICE))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("student_excludes", torch.bfloat16), ("several_blocks", torch.float16), ("warm", torch.float64)],
)
def test_log_probs_in_other_dtypes(name, dtype):
    check_backend_log_probs(backend, make_case(name, dtype=dtype, device=DEVICE))


@pytest.mark.no_cover
@pytest.mark.parametrize("name", ["odd_width", "padded_vocab", "leading_block"])
def test_log_probs_hold_however_a_row_is_cut(name):
    check_backend_log_probs(narrow_backend, make_case(name, device=DEVICE))


@pytest.mark.parametrize("num_ids", [1, LOG_PROB_BLOCK, LOG_PROB_BLOCK + 3])
def test_any_number_of_ids_adds_up(num_ids):
    # Few columns, so that every id comes again, in its own block of ids and in another.
    inputs, upstream = make_log_prob_inputs(make_case("cool", device=DEVICE))
    shape = (*inputs.step_ids.shape, num_ids)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(-1, 9, shape, generator=generator).to(DEVICE)
    gradients = torch.randn(shape, generator=generator).to(DEVICE)
    # What stands at an absent id is nobody's.
    gradients = torch.where(ids < 0, torch.nan, gradients)
    inputs, upstream = inputs._replace(ids=ids), upstream._replace(log_probs=gradients)
    stats, wanted = backend.log_probs_forward(inputs), reference_backend.log_probs_forward(inputs)
    torch.testing.assert_close(stats.log_probs, wanted.log_probs)
    ours = backend.log_probs_backward(upstream, inputs, stats.row_state)
    exact = reference_backend.log_probs_backward(upstream, inputs, wanted.row_state)
    torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_step_kl_agrees_with_the_reference(divergence, dtype):
    case = make_case("label_shift", divergence=divergence, dtype=dtype, device=DEVICE, with_reference=True)
    results = []
    for name in ("reference", "triton"):
        student = case.student_logits.detach().clone().requires_grad_()
        output = sod_kernels.step_kl(
            student,
            case.teacher_logits,
            case.step_ids,
            sampled_ids=case.sampled_ids,
            reference_logits=case.reference_logits,
            divergence=divergence,
            temperature=0.7,
            weighting=sod_kernels.SodWeighting(),
            backend=name,
        )
        assert output.backend == name
        objective = output.loss + 0.3 * output.student_log_probs.sum() - 0.1 * output.student_entropy.sum()
        (grad,) = torch.autograd.grad(objective, student)
        results.append(
            (output.loss, output.token_reference_kl, output.step_divergence, output.step_weights, grad)
        )
    for reference, ours in zip(*results, strict=True):
        tolerance = 1e-2 if ours.dtype == torch.bfloat16 else 2e-6
        torch.testing.assert_close(ours, reference, rtol=tolerance, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="a CUDA graph needs a GPU")
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_graph_replays_forward_and_backward(divergence):
    case = make_case("several_blocks", divergence=divergence, device=DEVICE, with_reference=True)
    log_prob_inputs, log_prob_upstream = make_log_prob_inputs(case)

    def step():
        stats = run_forward(case)
        grad = backend.backward(case.upstream, case.inputs, stats.row_state, case.spec)
        alone = backend.log_probs_forward(log_prob_inputs)
        grad_alone = backend.log_probs_backward(log_prob_upstream, log_prob_inputs, alone.row_state)
        return (*stats, grad, *alone, grad_alone)

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
