"""One case: nobody is timed before being right, and whatever breaks is a row."""

import sys

import pytest
import torch

from benchmarks.contestant import Contestant
from benchmarks.device import CpuDevice
from benchmarks.limits import Bandwidth
from benchmarks.measure import measure_case
from benchmarks.ours import our_contestants
from benchmarks.outcomes import SkippedError
from benchmarks.peers import peer_contestants
from benchmarks.plain import plain_contestants, plain_step_kl, with_own_code
from benchmarks.shapes import Case, Pair
from benchmarks.timing import summarise, time_in_turns

CASE = Case(
    op="step_kl",
    pair=Pair(name="tiny", vocab=300, student_width=8, teacher_width=8),
    rows=40,
    dtype="float32",
)


def rows_of(*contestants, case=CASE):
    result = measure_case(
        case,
        list(contestants),
        CpuDevice(),
        Bandwidth(read=1e10, copy=1e10),
        budget_s=0.0,
        say=lambda line: None,
    )
    return result.rows


def contestant(function, **more):
    def prepare(inputs):
        return lambda: function(inputs.student, inputs.teacher)

    return Contestant(**{"name": "made", "kind": "peer", "prepare": prepare, **more})


def refuse(inputs):
    raise SkippedError("It does not want to.")


def take_too_much(student, teacher):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried.\nMore")


def break_down(student, teacher):
    raise RuntimeError("out of luck\nand more")


def test_a_right_contestant_has_every_column():
    backward, forward = rows_of(contestant(plain_step_kl))
    assert (backward.sweeps, forward.sweeps) == ("forward+backward", "forward")
    assert backward.status == forward.status == "ok"
    assert backward.loss_error < 1e-5
    assert backward.gradient_error < 1e-4
    assert forward.gradient_error is None
    assert backward.rounds == 3
    assert 0 < backward.p20_s <= backward.median_s <= backward.p80_s
    assert backward.limit_s == pytest.approx(5 * 40 * 300 * 4 / 1e10)
    assert backward.bytes_per_s == pytest.approx(5 * 40 * 300 * 4 / backward.median_s)
    assert backward.peak_extra_bytes is not None


def test_a_wrong_peer_is_not_timed():
    rows = rows_of(contestant(lambda student, teacher: 1.2 * plain_step_kl(student, teacher)))
    assert {row.status for row in rows} == {"wrong"}
    assert rows[0].loss_error == pytest.approx(0.2, rel=1e-3)
    assert rows[0].median_s is None


def test_ours_is_held_to_more_than_a_peer():
    def slightly_off(student, teacher):
        return 1.001 * plain_step_kl(student, teacher)

    ours, peer = (rows_of(contestant(slightly_off, kind=kind))[0].status for kind in ("ours", "peer"))
    assert (ours, peer) == ("wrong", "ok")


def test_a_weighted_contestant_is_held_to_the_weighted_truth():
    rows = rows_of(contestant(plain_step_kl, is_weighted=True))
    assert {row.status for row in rows} == {"wrong"}


@pytest.mark.parametrize(
    ("made", "status", "reason"),
    [
        (contestant(None, prepare=refuse), "skipped", "It does not want to."),
        (contestant(break_down), "failed", "RuntimeError: out of luck"),
        (contestant(take_too_much), "skipped", "Out of memory: CUDA out of memory. Tried."),
        (
            contestant(plain_step_kl, needed_bytes=lambda case: 2**60),
            "skipped",
            "Needs about 1073741824.0 GiB",
        ),
    ],
    ids=["refuses", "breaks", "no-memory", "too-large"],
)
def test_who_cannot_run_is_a_row_and_the_others_go_on(made, status, reason):
    rows = rows_of(made, contestant(plain_step_kl, name="other"))
    assert [row.status for row in rows] == [status, "ok", status, "ok"]
    assert rows[0].reason.startswith(reason)


def test_ours_runs_or_says_why_for_every_op():
    for op in ("step_kl", "linear_step_kl", "topk_step_kl"):
        case = Case(op=op, pair=CASE.pair, rows=40, dtype="float32", top_k=9)
        everybody = [each for each in our_contestants(op) if "triton" not in each.name]
        rows = rows_of(*everybody, case=case)
        assert all(row.status == "ok" or (row.status == "skipped" and row.reason) for row in rows)
        assert any(row.status == "ok" for row in rows) or f"no {op} in this version" in rows[0].reason


@pytest.mark.parametrize("op", ["step_kl", "linear_step_kl", "topk_step_kl"])
def test_torch_eager_is_right(op):
    case = Case(op=op, pair=CASE.pair, rows=40, dtype="float32", top_k=9)
    rows = rows_of(plain_contestants(op)[0], case=case)
    assert rows[0].status == "ok"
    assert rows[0].gradient_error < 1e-4


def test_triton_under_the_interpreter_is_not_timed():
    rows = rows_of(*(each for each in our_contestants("step_kl") if "triton" in each.name))
    assert {row.status for row in rows} == {"skipped"}


def test_absent_peers_are_rows(monkeypatch):
    # None in place of a module makes its import fail.
    for name in ("trl", "liger_kernel", "fla"):
        monkeypatch.setitem(sys.modules, name, None)
    case = Case(op="linear_step_kl", pair=CASE.pair, rows=40, dtype="float32")
    reasons = {row.contestant: row.reason for row in rows_of(*peer_contestants("linear_step_kl"), case=case)}
    assert reasons["TRL ChunkedDivergenceFunction"].startswith("trl cannot be imported (ModuleNotFoundError")
    assert "liger-kernel cannot be imported" in reasons["Liger LigerFusedLinearJSDLoss (chunked)"]
    assert reasons["fla FusedKLDivLoss (forward KL)"] == "FusedKLDivLoss is Triton and needs a GPU."


class Slow16(CpuDevice):
    """A processor on which a 16-bit product takes five seconds and any other one."""

    def seconds(self, run):
        return 5.0 if run().dtype == torch.bfloat16 else 1.0


def test_the_limit_of_products_is_that_of_the_quickest_dtype():
    case = Case(op="linear_step_kl", pair=CASE.pair, rows=40, dtype="bfloat16")
    bandwidth = Bandwidth(read=1e10, copy=1e10)
    result = measure_case(case, [], Slow16(), bandwidth, budget_s=0.0, say=lambda line: None)
    # Four products of a second each: 2 V (3 d_s + d_t) operations per token.
    assert result.matmul_flops_per_s == 2 * 300 * (3 * 8 + 8) * 40 / 4.0


class Clock:
    """A device whose calls take the seconds that they return."""

    def seconds(self, run):
        return run()


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 3), (45.0, 9), (1e6, 30)])
def test_rounds_follow_the_budget_within_bounds(budget_s, rounds):
    order = []

    def take(name, seconds):
        order.append(name)
        return seconds

    timings = time_in_turns(
        {"a": lambda: take("a", 2.0), "b": lambda: take("b", 3.0)}, Clock(), budget_s=budget_s
    )
    assert order == ["a", "b"] * rounds
    assert (timings["a"].median_s, timings["b"].median_s) == (2.0, 3.0)
    assert timings["a"].rounds == rounds


def test_percentiles():
    timing = summarise([5.0, 1.0, 2.0, 3.0, 4.0, 6.0])
    assert (timing.p20_s, timing.median_s, timing.p80_s) == (2.0, 3.5, 5.0)
    assert summarise([7.0]).p80_s == 7.0


def test_what_is_compiled_has_code_of_its_own():
    copy = with_own_code(plain_step_kl)
    assert copy.__code__ is not plain_step_kl.__code__
    student, teacher = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copy(student, teacher), plain_step_kl(student, teacher))
