"""What a run measures."""

import pytest

from benchmarks.shapes import OPS, PAIRS, planned_cases


@pytest.mark.parametrize("profile", ["full", "quick"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_profile_measures_every_op_once_per_shape(device, profile):
    cases = planned_cases(device, profile)
    assert {case.op for case in cases} == set(OPS)
    assert len(set(cases)) == len(cases)


def test_the_full_cuda_profile_measures_every_pair_from_512_to_32k():
    cases = planned_cases("cuda", "full")
    assert {case.pair.name for case in cases} == set(PAIRS)
    for op in ("step_kl", "linear_step_kl"):
        rows = {case.rows for case in cases if case.op == op and case.pair.vocab == 151_936}
        assert {512, 32_768} <= rows


def test_cpu_cases_leave_room_in_24_gigabytes():
    # Two logits, their gradient, and the five more that eager torch makes in float32.
    for case in planned_cases("cpu", "full"):
        assert 8 * 4 * case.rows * case.pair.vocab < 16e9, str(case)


def test_options_narrow_the_plan_and_replace_its_rows():
    cases = planned_cases(
        "cpu", "full", ops=("step_kl",), pairs=("small",), rows=(5, 6), dtypes=("bfloat16",)
    )
    assert [(case.op, case.pair.name, case.rows, case.dtype) for case in cases] == [
        ("step_kl", "small", 5, "bfloat16"),
        ("step_kl", "small", 6, "bfloat16"),
    ]


def test_a_pair_outside_the_plan_is_measured_when_rows_are_named():
    cases = planned_cases("cpu", "quick", ops=("step_kl",), pairs=("llama3.2-1b-from-8b",), rows=(4,))
    assert [(case.op, case.pair.vocab, case.rows) for case in cases] == [("step_kl", 128_256, 4)]


def test_nothing_to_measure_says_what_to_name():
    with pytest.raises(ValueError, match=r"quick profile for cpu has none of ops .* name --rows as well"):
        planned_cases("cpu", "quick", pairs=("llama3.2-1b-from-8b",))
