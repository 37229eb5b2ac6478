"""The run that holds `linear_step_kl` to its targets, end to end on a small pair."""

import json
import re

import pytest
import torch

from benchmarks import bench_linear_step_kl as bench
from benchmarks.inputs import make_inputs
from benchmarks.ours import LOGITS_PATH
from benchmarks.shapes import PAIRS, Case

CASE = Case(op=bench.OP, pair=PAIRS["small"], rows=32, dtype="bfloat16")


def test_every_figure_is_printed_and_kept(tmp_path, capsys):
    path = tmp_path / "run.json"
    arguments = ["--pair", "small", "--rows", "32", "--many-rows", "48", "--budget", "0.01"]
    arguments += ["--peers", str(tmp_path / "none"), "--output", str(path)]
    assert bench.main(arguments) == 0
    printed = capsys.readouterr().out
    for dtype in ("float32", "bfloat16"):
        assert f"linear_step_kl, small, N=32, V=4096, {dtype}: products" in printed
    assert re.search(
        r"\| linear_step_kl native \| [\d.]+ \| [\d.]+ - [\d.]+ \| [\d.]+ \| \d+ \| \de-0\d \|", printed
    )
    assert f"| {bench.PRODUCTS} |" in printed
    assert re.search(r"N=48, float32: linear_step_kl native \d+ MiB at the peak", printed)
    cases = json.loads(path.read_text())["cases"]
    assert set(cases[0]) == {bench.OURS, f"{bench.OURS} + SOD weights", LOGITS_PATH, bench.PRODUCTS}
    assert set(cases[1]) == {bench.OURS, f"{bench.OURS} + SOD weights", bench.PRODUCTS}
    assert cases[0][bench.OURS]["gradient_error"] < 1e-4
    assert cases[2][LOGITS_PATH]["row"]["rows"] == 48


def test_products_are_those_of_the_op():
    inputs = make_inputs(CASE, "cpu")
    _, _, to_hidden, _ = bench.make_products(inputs)()
    assert (to_hidden.dtype, tuple(to_hidden.shape)) == (torch.float32, (32, 256))
    logits = inputs.student.detach().float() @ inputs.student_head.detach().float().T
    torch.testing.assert_close(to_hidden, logits @ inputs.student_head.detach().float())


def test_ours_that_is_wrong_makes_the_run_fail(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "OURS", "nobody")
    arguments = [
        "--pair",
        "small",
        "--rows",
        "8",
        "--many-rows",
        "8",
        "--dtypes",
        "bfloat16",
        "--budget",
        "0.01",
    ]
    assert bench.main([*arguments, "--peers", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "--rows and --many-rows take counts of at least 1."),
        (["--budget", "0"], "--budget takes seconds above 0, got 0.0."),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        bench.main(arguments)
    assert message in capsys.readouterr().err


def test_another_op_is_refused():
    case = Case(op="step_kl", pair=PAIRS["small"], rows=2, dtype="float32")
    with pytest.raises(TypeError, match="step_kl does not start from hidden states"):
        bench.measure(case, [], budget_s=None, say=print)
