"""The ops of `linear_unit_kl` under torch's own checks and torch.compile; what they multiply and keep."""

import pytest
import torch
from linear_unit_inputs import STEPS, gradients, make_case, run_linear
from torch.utils._python_dispatch import TorchDispatchMode
from unit_inputs import random_pair

from sod_kernels import SodWeighting, linear_unit_kl
from sod_kernels._unit_space import make_space
from sod_kernels.linear import unit_ops
from sod_kernels.linear.single import SingleSweep
from sod_kernels.linear.unit_ops import UnitObjective
from sod_kernels.linear.units import LinearUnitOptions, LinearUnits, LinearUnitTensors

OPTIONS = LinearUnitOptions(
    num_steps=3,
    score="log_prob",
    measures_student=True,
    measures_teacher=True,
    student_vocab_size=37,
    teacher_vocab_size=41,
    student_scale=0.9,
    teacher_scale=1.0,
    student_softcap=5.0,
    teacher_softcap=None,
    divergence="reverse_kl",
    beta=0.5,
    temperature=0.9,
    topk=0,
    chunk_size=3,
    backend="reference",
    function="linear_unit_kl",
)
EVERYTHING = (True, True, True)


def _tensors(*, requires_grad):
    pair, heads = make_case(has_bias=True)
    ids, spans = (pair.student_ids, pair.teacher_ids), (pair.units.student_spans, pair.units.teacher_spans)
    space = make_space(pair.units, pair.vocab_map, ids, STEPS, unit_filter=None, masks_first_token=True)
    names = [f"{model}_{name}" for model in ("student", "teacher") for name in ("hidden", "weight", "bias")]
    tensors = [heads[name].detach().requires_grad_(requires_grad and "student" in name) for name in names]
    columns = (space.columns.student[0].long(), space.columns.teacher[0].long(), space.columns.excluded)
    return LinearUnitTensors(*tensors, *ids, *spans, space.kinds, space.steps, *columns)


def _objective():
    factors = torch.linspace(0.2, 1, 8, dtype=torch.float64)
    return UnitObjective(torch.zeros(3).long(), None, factors, torch.tensor(7.0).double(), 0.2, 1e-6)


def test_opcheck_forward_and_loss():
    tensors = _tensors(requires_grad=True)
    torch.library.opcheck(torch.ops.sod_kernels.linear_unit_kl_forward, (*tensors, *OPTIONS))
    arguments = (*tensors, *OPTIONS, *_objective(), *EVERYTHING)
    torch.library.opcheck(torch.ops.sod_kernels.linear_unit_kl_loss, arguments)


def test_opcheck_backward():
    tensors = _tensors(requires_grad=False)
    kept = torch.ops.sod_kernels.linear_unit_kl_forward(*tensors, *OPTIONS)[2:]
    grad = torch.linspace(-1, 1, 8, dtype=torch.float64)
    arguments = (grad, *kept, *EVERYTHING, *tensors, *OPTIONS)
    torch.library.opcheck(torch.ops.sod_kernels.linear_unit_kl_backward, arguments)


def test_compiled_equals_eager():
    torch._dynamo.reset()
    pair, heads = make_case()
    steps = STEPS

    def objective(hidden, weight):
        changed = heads | {"student_hidden": hidden, "student_weight": weight}
        options = {"step_ids": steps, "num_steps": 3, "weighting": SodWeighting(), "chunk_size": 4}
        return run_linear(pair, changed, **options).loss

    results = []
    for function in (torch.compile(objective, fullgraph=True, backend="aot_eager"), objective):
        loss = function(heads["student_hidden"], heads["student_weight"])
        results.append((loss, *gradients(loss, heads)))
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("single_sweep", [True, False])
def test_gradient_of_the_gradient_is_refused(single_sweep):
    pair, heads = make_case()
    loss = run_linear(pair, heads, single_sweep=single_sweep).loss
    grad = gradients(loss, heads, create_graph=True)[0]
    with pytest.raises(RuntimeError, match=r"^linear_unit_kl: the gradient of the gradient was asked for"):
        grad.sum().backward()


class _Spy(TorchDispatchMode):
    """Notes the largest tensor that any operation returned, and the multiplications of matrix products."""

    def __init__(self):
        super().__init__()
        self.entries = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.untyped_storage().nbytes() // 4)
        if func._opname in ("addmm", "addmm_", "mm"):
            left, right = [arg for arg in args if isinstance(arg, torch.Tensor)][-2:]
            self.products += left.shape[0] * left.shape[1] * right.shape[1]
        return result


@pytest.fixture
def spy(monkeypatch):
    """A spy inside the custom ops, which hide what they do from one that is outside."""
    spy = _Spy()

    def watched(run):
        def run_watched(*arguments, **options):
            with spy:
                return run(*arguments, **options)

        return run_watched

    places = [(LinearUnits, name) for name in ("score", "over_columns", "finish_gradients")]
    places += [(SingleSweep, name) for name in ("__init__", "run")]
    places += [(unit_ops, name) for name in ("run_forward", "run_backward")]
    for owner, name in places:
        monkeypatch.setattr(owner, name, watched(getattr(owner, name)))
    return spy


def _large_case(num_units):
    """Of four units one has a span of two tokens on the student's side, one of three on the other."""
    lengths = [((1, 1), (2, 1), (1, 1), (1, 3))[number % 4] for number in range(num_units)]
    pair = random_pair(lengths=lengths, sizes=(400, 300), num_shared=250, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    shapes = [(len(pair.student_ids), 3), (400, 3), (len(pair.teacher_ids), 2), (300, 2)]
    return pair, [torch.randn(shape, generator=generator) for shape in shapes]


def _run(pair, heads, **options):
    labels = {"student_ids": pair.student_ids, "teacher_ids": pair.teacher_ids}
    return linear_unit_kl(*heads, pair.units, pair.vocab_map, **labels, backend="reference", **options)


@pytest.mark.parametrize(
    "options",
    [{}, {"weighting": SodWeighting()}, {"single_sweep": False}, {"topk": 5, "student_softcap": 9.0}],
)
def test_largest_tensor_does_not_grow_with_the_units(options, spy):
    for num_units in (40, 160):
        pair, heads = _large_case(num_units)
        student = [each.requires_grad_() for each in heads[:2]]
        _run(pair, [*student, *heads[2:]], chunk_size=8, **options).loss.backward()
        assert student[0].grad.any()
        # The buffers of a chunk, a spare one included.
        assert 0 < spy.entries <= 8 * 401 * 3 < num_units * 250


def test_only_what_the_scores_need_is_multiplied(spy):
    units, columns, size, teacher_size = 40, 250, 3, 2
    pair, heads = _large_case(units)
    steps = torch.zeros(len(pair.student_ids), dtype=torch.int64)
    # A unit that is not compared.
    steps[pair.units.student_spans[4, 0]] = -1
    over_columns = (units - 1) * columns
    # Ten units of two tokens, ten of the teacher's three.
    whole, whole_teacher = 20 * 400, 30 * 300
    for score, is_whole in (("log_prob", 1), ("logit", 0)):
        scored = is_whole * (whole * size + whole_teacher * teacher_size)
        for learned, times, times_whole in (((0, 1), 2, 3), ((0,), 1, 2), ((), 0, 0)):
            spy.products = 0
            student = [
                each.clone().requires_grad_(number in learned) for number, each in enumerate(heads[:2])
            ]
            _run(pair, [*student, *heads[2:]], step_ids=steps, score=score, chunk_size=16)
            compared = over_columns * (size + teacher_size)
            back = over_columns * times * size + is_whole * whole * times_whole * size
            assert spy.products == scored + compared + back
