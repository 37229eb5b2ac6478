"""The native and the Triton unit sweeps against the reference, on what has broken kernels before."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from unit_inputs import DIVERGENCES, SCORES, Pair, random_pair, run_with_gradient, textbook

from sod_kernels import Units, VocabMap, step_kl
from sod_kernels.testing import assert_error_relative, nan_filled_empty
from sod_kernels.triton import backend as triton_backend
from sod_kernels.triton.config import SweepConfig
from sod_kernels.triton.units import unit_backward, unit_forward, unit_meta

HAS_TRITON = triton_backend.availability("cpu") is None or torch.cuda.is_available()
BACKENDS = ("native", "triton") if HAS_TRITON else ("native",)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The interpreter takes a tenth of a second per program, so fewer and smaller cases go through it.
SMALL = [(1, 1), (2, 1), (1, 3), (2, 2)]
CASES = [
    ("native", dtype, score, divergence)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for score in SCORES
    for divergence in DIVERGENCES
]
CASES += [
    ("triton", torch.float32, "log_prob", "reverse_kl"),
    ("triton", torch.float32, "log_prob", "jsd"),
    ("triton", torch.float64, "log_prob", "forward_kl"),
    ("triton", torch.bfloat16, "logit", "jsd"),
    ("triton", torch.float16, "log_prob", "reverse_kl"),
]
NARROW = ({"topk": 3}, {"topk": 20, "mask_first_token": True}, {"mask_first_token": True})


def cases(*native, triton):
    """Parameters of a test: those of the native kernels, and fewer for Triton's."""
    listed = [("native", *each) for each in native] + [("triton", *each) for each in triton]
    return [each for each in listed if each[0] in BACKENDS]


def device_of(backend):
    return DEVICE if backend == "triton" else "cpu"


def moved(pair, device):
    columns = pair.vocab_map
    return Pair(
        *(each.to(device) for each in (pair.student, pair.teacher, pair.student_ids, pair.teacher_ids)),
        pair.units.to(device),
        VocabMap(columns.student_columns.to(device), columns.teacher_columns.to(device)),
    )


def plain(pair, **options):
    """The textbook in the dtype under test, from float32 on."""
    student = pair.student.detach().clone().requires_grad_()
    values = textbook(replace(pair, student=student), **options)
    return values.detach(), torch.autograd.grad(values.sum(), student)[0]


def check(backend, pair, **options):
    """Against the float64 formula on the same rounded logits; twice, for the same bits."""
    dtype = pair.student.dtype
    exact = plain(pair.to(torch.float64), **options)
    options = {"reduction": "sum", "backend": backend, **options}
    here = moved(pair, device_of(backend))
    with nan_filled_empty():
        out, grad = run_with_gradient(here, **options)
        again, grad_again = run_with_gradient(here, **options)
    assert out.backend == backend
    assert torch.equal(out.unit_kl, again.unit_kl)
    assert torch.equal(grad, grad_again)
    assert grad.dtype == dtype
    value_dtype = torch.promote_types(dtype, torch.float32)
    for name, ours, wanted, unit in (
        ("unit_kl", out.unit_kl, exact[0], value_dtype),
        ("gradient", grad, exact[1], dtype),
    ):
        wanted = torch.where(wanted.isnan(), 0.0, wanted) if name == "gradient" else wanted
        assert_error_relative(name, ours.detach().cpu(), wanted, wanted, dtype=unit)
    return out, grad


@pytest.mark.parametrize(
    ("backend", "dtype", "score", "divergence"), [each for each in CASES if each[0] in BACKENDS], ids=str
)
def test_accuracy(backend, dtype, score, divergence):
    pair = random_pair(11, dtype=dtype, lengths=SMALL if backend == "triton" else None)
    check(backend, pair, score=score, divergence=divergence, temperature=0.8)


@pytest.mark.parametrize(
    ("backend", "num_shared", "divergence"),
    cases(*((number, kind) for number in (1, 256, 1500) for kind in DIVERGENCES), triton=[(1, "reverse_kl")]),
)
def test_several_blocks_and_one_column(backend, num_shared, divergence):
    sizes = (2600, 1700)
    pair = random_pair(
        12, sizes=sizes, num_shared=num_shared, dtype=torch.float32, lengths=[(1, 1), (2, 1), (1, 2)]
    )
    check(backend, pair, divergence=divergence)


@pytest.mark.parametrize(
    ("backend", "divergence", "options"),
    cases(
        *((kind, options) for kind in DIVERGENCES for options in NARROW),
        triton=[("reverse_kl", NARROW[0]), ("jsd", NARROW[1]), ("forward_kl", NARROW[2])],
    ),
    ids=str,
)
def test_lists_of_their_own_and_excluded_columns(backend, divergence, options):
    pair = random_pair(13, dtype=torch.float32, lengths=SMALL)
    ids = pair.student_ids.clone()
    ids[pair.units.student_spans[:, 0]] = pair.vocab_map.student_columns[:4]
    check(backend, replace(pair, student_ids=ids), divergence=divergence, **options)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_infinities(backend, divergence):
    pair = random_pair(14, dtype=torch.float32, lengths=[*SMALL, (2, 1)])
    student, teacher = pair.student.clone(), pair.teacher.clone()
    spans, columns = pair.units, pair.vocab_map
    for unit in (0, 1):
        student[spans.student_spans[unit, 0], columns.student_columns[2 + unit]] = -torch.inf
        teacher[spans.teacher_spans[unit, 0], columns.teacher_columns[2 + unit]] = -torch.inf
    student[spans.student_spans[3, 0], columns.student_columns[5]] = -torch.inf
    teacher[spans.teacher_spans[4, 0], columns.teacher_columns[5]] = -torch.inf
    pair = replace(pair, student=student, teacher=teacher)
    ours, reference = (
        run_with_gradient(moved(pair, device_of(name)), backend=name, divergence=divergence, reduction="sum")
        for name in (backend, "reference")
    )
    infinite = {"reverse_kl": [4], "forward_kl": [3], "jsd": []}[divergence]
    assert ours[0].unit_kl.isinf().nonzero().flatten().tolist() == infinite
    torch.testing.assert_close(ours[0].unit_kl.cpu(), reference[0].unit_kl.cpu(), rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(ours[1].cpu(), reference[1].cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_far_shifts_of_rows(backend):
    """A shift of all logits by thousands, which float32 can barely hold, costs what the rounding costs."""
    pair = random_pair(15, dtype=torch.float32, lengths=SMALL)
    shifted = replace(pair, student=(pair.student + 3e3), teacher=(pair.teacher - 5e3))
    out, grad = run_with_gradient(moved(shifted, device_of(backend)), backend=backend, reduction="sum")
    exact = plain(shifted.to(torch.float64))
    torch.testing.assert_close(out.unit_kl.cpu().double(), exact[0], rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(grad.cpu().double(), exact[1], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_rows_and_columns_in_units_are_read(backend):
    pair = random_pair(16, dtype=torch.float32, lengths=SMALL)
    # Rows that lie apart in memory, beside NaN.
    wide = torch.full((len(pair.student), 64), torch.nan)
    wide[:, :37] = pair.student
    inside = torch.zeros(len(wide), dtype=torch.bool)
    for start, end in pair.units.student_spans.tolist():
        inside[start:end] = True
    wide[~inside] = torch.nan
    here = moved(replace(pair, student=wide), device_of(backend))
    strided = replace(here, student=here.student[:, :40])
    out, grad = run_with_gradient(strided, backend=backend, student_vocab_size=37)
    wanted, wanted_grad = run_with_gradient(moved(pair, device_of(backend)), backend=backend)
    assert torch.equal(out.unit_kl, wanted.unit_kl)
    assert torch.equal(grad[:, :37], wanted_grad)
    assert (grad[:, 37:] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_units_that_are_not_compared_are_exact_zeros(backend):
    pair = random_pair(17, dtype=torch.float32, lengths=SMALL)
    last = int(pair.units.student_spans[-1, 0])
    student = pair.student.clone()
    student[last:] = torch.nan
    here = moved(replace(pair, student=student), device_of(backend))
    steps = torch.where(torch.arange(len(student)) < last, 0, -1).to(here.student.device)
    with nan_filled_empty():
        out, grad = run_with_gradient(here, backend=backend, step_ids=steps)
    assert out.unit_kl[-1].item() == out.unit_entropy[-1].item() == 0
    assert (grad[last:] == 0).all()
    assert grad.isfinite().all()
    assert (out.unit_kl[:-1] > 0).all()


@pytest.mark.parametrize(
    ("backend", "divergence"), cases(*((kind,) for kind in DIVERGENCES), triton=[("reverse_kl",)])
)
def test_identity_is_step_kl_bit_by_bit(backend, divergence):
    generator = torch.Generator().manual_seed(18)
    student, teacher = (3 * torch.randn(3, 9000, generator=generator) for _ in range(2))
    spans = torch.stack([torch.arange(3), torch.arange(1, 4)], -1)
    every, ids = torch.arange(9000), torch.tensor([5, 8999, 7])
    pair = moved(
        Pair(student, teacher, ids, ids, Units(spans, spans), VocabMap(every, every)), device_of(backend)
    )
    out, grad = run_with_gradient(pair, backend=backend, divergence=divergence)
    x = pair.student.clone().requires_grad_()
    wanted = step_kl(x, pair.teacher, backend=backend, divergence=divergence)
    wanted.loss.backward()
    if backend == "native":
        assert torch.equal(out.unit_kl, wanted.token_kl)
        assert torch.equal(grad, x.grad)
    # Lanes take other columns there where they are gathered.
    torch.testing.assert_close(out.unit_kl, wanted.token_kl, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(out.unit_entropy, wanted.student_entropy, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad, x.grad, rtol=1e-5, atol=1e-9)


def test_threads_do_not_change_a_bit():
    pair = random_pair(19, sizes=(900, 800), num_shared=500, dtype=torch.float32)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(run_with_gradient(pair, backend="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0].unit_kl, results[1][0].unit_kl)
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_sides_give_exact_zeros(backend):
    pair = random_pair(20, lengths=[(1, 1), (2, 2)], dtype=torch.float32)
    columns, spans, ids = pair.vocab_map.student_columns, pair.units.student_spans, pair.student_ids
    same = Pair(pair.student, pair.student.clone(), ids, ids, Units(spans, spans), VocabMap(columns, columns))
    for divergence in DIVERGENCES if backend == "native" else ("jsd",):
        out, grad = run_with_gradient(moved(same, device_of(backend)), backend=backend, divergence=divergence)
        assert (out.unit_kl.abs() < 1e-6).all()
        assert (grad.abs() < 1e-6).all()


@pytest.mark.skipif(not HAS_TRITON, reason="Triton cannot run here.")
@pytest.mark.parametrize(("splits", "divergence"), [(1, "reverse_kl"), (4, "forward_kl"), (2, "jsd")])
def test_programs_and_blocks_that_share_a_unit(splits, divergence, monkeypatch):
    config = SweepConfig(block_size=256, lanes=64, splits=splits, num_warps=2)
    meta = {"VOCAB": 1000, "BLOCK": 128, "LANES": 64, "VECTOR": 2, "SPLITS": splits}
    assert unit_meta(config, 1000) == meta
    pair = random_pair(21, sizes=(1500, 1300), num_shared=1000, dtype=torch.float32, lengths=[(1, 1), (2, 1)])
    monkeypatch.setattr(triton_backend, "unit_forward", partial(unit_forward, config=config))
    monkeypatch.setattr(triton_backend, "unit_backward", partial(unit_backward, config=config))
    check("triton", pair, divergence=divergence)
