"""What the parts read from the tools that they start, and what they do where something is missing."""

import json
import subprocess
import time
from types import SimpleNamespace

import pytest

from benchmarks.contestant import OURS, Contestant
from benchmarks.gpu import (
    bench_part,
    build_part,
    correctness_part,
    counters_part,
    e2e_part,
    pytest_rows,
    sanitize_part,
)
from benchmarks.gpu.bench_cases import Planned
from benchmarks.gpu.correctness_part import summary
from benchmarks.gpu.e2e_world import wide_tokenizer
from benchmarks.gpu.job import Job
from benchmarks.gpu.ledger_world import NAME, python
from benchmarks.gpu.sheet import Sheet
from benchmarks.gpu.workload import main as workload_main
from benchmarks.measure import measure_case
from benchmarks.outcomes import SkippedError
from benchmarks.plain import plain_step_kl
from benchmarks.shapes import Case, Pair
from sod.demo.tokenizer import ledger_tokenizer
from sod.envs.registry import environment_entry

ORIGIN = {"device": "Test GPU", "kind": "cuda", "capability": [9, 0], "time": "2026-01-02T03:04:05Z"}
DRAM = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
NCU = f"""==PROF== Connected to process 7
"ID","Kernel Name","gpu__time_duration.sum","{DRAM}","dram__bytes_read.sum"
"","","usecond","%","Gbyte"
"0","first_sweep_kernel(float const*)","1,300.5","40.25","1.5"
"1","first_sweep_kernel(float const*)","700","91.5","1.5"
"2","backward_kernel","n/a","",""
loss 1.5
"""


def make_job(folder, *, part="limits", is_dry=False, seconds=60.0):
    sheet = Sheet.begin(folder, part, ORIGIN, resume=False)
    return Job(sheet=sheet, is_dry=is_dry, deadline=time.monotonic() + seconds, peers=folder)


def answers(monkeypatch, module, *, code=0, stdout="", stderr="", error=None):
    """Let every process that a part starts end like this."""

    def run(command, **options):
        if error is not None:
            raise error
        return subprocess.CompletedProcess(command, code, stdout, stderr)

    monkeypatch.setattr(module.subprocess, "run", run)
    monkeypatch.setattr(module.shutil, "which", lambda name, **more: f"/bin/{name}")


def test_counters_are_read_in_their_units_and_the_last_launch_counts():
    kernels = counters_part.read_csv(NCU)
    assert list(kernels) == ["first_sweep_kernel", "backward_kernel"]
    first = kernels["first_sweep_kernel"]
    assert (first["microseconds"], first["dram_percent"], first["read_bytes"]) == (700.0, 91.5, 1.5e9)
    assert kernels["backward_kernel"]["microseconds"] is None
    assert counters_part.read_csv("nothing here") == {}


def test_counters_that_may_not_be_read_are_skipped(monkeypatch, tmp_path):
    job = make_job(tmp_path)
    answers(monkeypatch, counters_part, code=1, stderr="==ERROR== ERR_NVGPUCTRPERM: no permission")
    with pytest.raises(SkippedError, match="ncu: ==ERROR== ERR_NVGPUCTRPERM"):
        counters_part.profile(job, "step_kl", "triton")
    answers(monkeypatch, counters_part, code=2, stderr="Traceback\nValueError: odd")
    with pytest.raises(RuntimeError, match="ended with 2 and said: ValueError: odd"):
        counters_part.profile(job, "step_kl", "triton")
    answers(monkeypatch, counters_part, stdout="loss 1")
    with pytest.raises(SkippedError, match="saw no kernel"):
        counters_part.profile(job, "step_kl", "triton")
    answers(monkeypatch, counters_part, error=subprocess.TimeoutExpired("ncu", 1))
    with pytest.raises(SkippedError, match="It took more than 45 s"):
        counters_part.profile(job, "step_kl", "triton")
    monkeypatch.setattr(counters_part.shutil, "which", lambda name, **more: None)
    with pytest.raises(SkippedError, match="ncu was not found"):
        counters_part.profile(job, "step_kl", "triton")


def test_counters_of_every_kernel_have_a_row(monkeypatch, tmp_path):
    job = make_job(tmp_path, part="counters")
    answers(monkeypatch, counters_part, stdout=NCU)
    counters_part.run(job)
    rows = {row["item"]: row for row in job.sheet.rows}
    assert rows["step_kl native"]["kernels"] == 2
    assert rows["linear_step_kl triton: first_sweep_kernel"]["dram_percent"] == 91.5
    late = make_job(tmp_path / "late", part="counters", seconds=1.0)
    counters_part.run(late)
    assert {row["status"] for row in late.sheet.rows} == {"skipped"}


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("loss 1.5\n========= ERROR SUMMARY: 0 errors", 0),
        ("loss 1.5\n========= ERROR SUMMARY: 3 errors", 3),
        ("loss 1.5\n========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)", 2),
    ],
)
def test_what_the_checkers_found_is_read(output, found):
    assert sanitize_part.read_summary("memcheck", 0, output) == found


@pytest.mark.parametrize(
    ("tool", "output", "error", "message"),
    [
        ("memcheck", "Device not supported", SkippedError, "does not support this device"),
        ("memcheck", "loss 1.5", RuntimeError, "ended with 1 and said: loss 1.5"),
        ("none", "Traceback\nValueError: odd\n\n", RuntimeError, "ended with 1 and said: ValueError: odd"),
    ],
)
def test_a_checker_that_says_nothing_proves_nothing(tool, output, error, message):
    with pytest.raises(error, match=message):
        sanitize_part.read_summary(tool, 1, output)


def test_an_error_that_a_checker_finds_fails_its_row(monkeypatch, tmp_path):
    job = make_job(tmp_path, part="sanitize")
    answers(monkeypatch, sanitize_part, code=1, stdout="loss 1.5\n========= ERROR SUMMARY: 2 errors")
    sanitize_part.run(job)
    assert len(job.sheet.rows) == 2 * (2 * len(sanitize_part.OPS) - 1)
    assert {row["status"] for row in job.sheet.rows} == {"failed"}
    assert job.sheet.rows[0]["reason"] == "RuntimeError: memcheck found 2 errors."
    assert job.sheet.rows[0]["report"] == ["========= ERROR SUMMARY: 2 errors"]
    late = make_job(tmp_path / "late", part="sanitize", seconds=1.0)
    sanitize_part.run(late)
    assert {row["status"] for row in late.sheet.rows} == {"skipped"}


def test_the_build_is_for_the_card_alone(monkeypatch, tmp_path):
    seen = []

    def run(command, *, env, **options):
        seen.append((command, env))
        return subprocess.CompletedProcess(command, 1, "", "a\nx.cu(3): error: no\nend")

    monkeypatch.setattr(build_part.subprocess, "run", run)
    monkeypatch.setattr(build_part, "find_nvcc", lambda: "/opt/cuda/bin/nvcc")
    with pytest.raises(RuntimeError, match=r"ended with 1: x.cu\(3\): error: no"):
        build_part.build_modules(make_job(tmp_path))
    ((command, variables),) = seen
    assert command[1:] == ["setup.py", "-q", "build_ext", "--inplace"]
    assert (variables["CUDAARCHS"], variables["SOD_BUILD_CUDA"]) == ("90-real", "ON")
    assert variables["PATH"].startswith("/opt/cuda/bin:")


def test_without_a_compiler_the_build_is_skipped(monkeypatch, tmp_path):
    monkeypatch.setattr(build_part, "find_nvcc", lambda: None)
    for call in (build_part.nvcc_version, lambda: build_part.build_modules(make_job(tmp_path))):
        with pytest.raises(SkippedError, match="nvcc"):
            call()


def test_workers_of_the_tests_share_the_processor(monkeypatch, tmp_path):
    seen = {}

    def start(command, *, cwd, env):
        seen.update(env)
        return SimpleNamespace(poll=lambda: 0, kill=lambda: None, wait=lambda: 0)

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(correctness_part.subprocess, "Popen", start)
    correctness_part.run(make_job(tmp_path, part="correctness"))
    assert (seen["OMP_NUM_THREADS"], seen["TORCHINDUCTOR_COMPILE_THREADS"]) == ("1", "1")
    assert "TRITON_INTERPRET" not in seen


def test_a_failed_test_keeps_its_traceback(tmp_path):
    rows = pytest_rows._Rows(tmp_path / "rows.jsonl")
    for outcome, said in (("passed", None), ("failed", "x" * 5000 + "\nt.py:3: AssertionError: off")):
        rows.pytest_runtest_logreport(
            pytest.TestReport("t.py::t", ("t.py", 3, "t"), {}, outcome, said, "call", duration=0.1)
        )
    passed, failed = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert "report" not in passed
    assert failed["report"].endswith("t.py:3: AssertionError: off")
    assert len(failed["report"]) == 3000


def test_tests_are_summed_up_by_function_with_their_reasons():
    tests = [
        {"item": "tests/kernels/test_a.py::test_x[1]", "status": "ok", "reason": None, "seconds": 1.0},
        {"item": "tests/kernels/test_a.py::test_x[2]", "status": "failed", "reason": "off", "seconds": 2.0},
        {"item": "tests/kernels/test_a.py::test_y", "status": "skipped", "reason": "no", "seconds": 0.0},
    ]
    first, second = summary(tests)
    assert (first["item"], first["status"], first["reason"]) == ("test_a.py::test_x", "failed", "off")
    assert (first["passed"], first["failed"], first["seconds"]) == (1, 1, 3.0)
    assert (second["status"], second["reason"], second["skipped"]) == ("skipped", "no", 1)


def test_a_shape_that_does_not_fit_is_skipped_and_the_next_is_measured(monkeypatch, tmp_path):
    pair = Pair(name="tiny", vocab=300, student_width=8, teacher_width=8)
    cases = [Case(op="step_kl", pair=pair, rows=rows, dtype="float32") for rows in (9, 8, 7)]
    ours = Contestant(
        name="made", kind=OURS, prepare=lambda inputs: lambda: plain_step_kl(inputs.student, inputs.teacher)
    )

    def measure(case, *arguments, **options):
        if case.rows == 9:
            raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory.")
        return measure_case(case, *arguments, **options)

    job = make_job(tmp_path, part="bench", is_dry=True)
    listed = [Planned(case=case, contestants="", is_target=True) for case in cases]
    monkeypatch.setattr(bench_part, "planned", lambda *, is_dry: listed)
    monkeypatch.setattr(bench_part, "contestants_of", lambda op, pattern: [ours])
    monkeypatch.setattr(bench_part, "measure_case", measure)
    bench_part.run(job)
    by_rows = {row["rows"]: row for row in job.sheet.rows}
    assert (by_rows[9]["status"], by_rows[9]["reason"]) == (
        "skipped",
        "OutOfMemoryError: CUDA out of memory.",
    )
    assert by_rows[8]["status"] == by_rows[7]["status"] == "ok"
    # What is done is not measured again.
    monkeypatch.setattr(bench_part, "measure_case", None)
    bench_part.run(job)
    assert by_rows == {row["rows"]: row for row in job.sheet.rows}


def test_cases_that_there_is_no_time_for_are_not_begun(monkeypatch, tmp_path):
    job = make_job(tmp_path, part="bench", is_dry=True)
    monkeypatch.setattr(bench_part, "_seconds_needed", lambda each, *, is_dry: 1e9)
    made = Contestant(name="made", kind=OURS, prepare=lambda inputs: None)
    monkeypatch.setattr(bench_part, "contestants_of", lambda op, pattern: [made])
    bench_part.run(job)
    assert {row["status"] for row in job.sheet.rows} == {"skipped"}
    assert all(row["reason"].startswith("Not begun: ") for row in job.sheet.rows)


@pytest.mark.parametrize("arguments", [[], ["small", "step_kl"], ["odd", "a", "b", "c", "cpu"]])
def test_a_workload_that_is_not_named_is_refused(arguments, capsys):
    assert workload_main(arguments) == 2
    assert "small OP BACKEND DTYPE DEVICE" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "printed"), [("print(3+4-5)", "2"), (" print( -3 + 12 ) ", "9"), ("print(7)", "7")]
)
def test_the_python_of_the_world_adds_up(code, printed):
    assert python(code) == printed


@pytest.mark.parametrize("code", ["print(2*3)", "import os", "print(3+)", "print(__import__('os'))", ""])
def test_the_python_of_the_world_runs_nothing(code):
    with pytest.raises(SyntaxError, match="only sums of whole numbers"):
        python(code)


def test_the_world_is_found_by_its_name():
    assert environment_entry(NAME).options.__name__ == "ArithmeticLedgerSection"


def test_fillers_widen_a_tokenizer_and_change_no_text():
    own, wide = ledger_tokenizer(), wide_tokenizer(900)
    assert sorted(wide.get_vocab().values()) == list(range(900))
    text = 'price of jacket 1? <tool_call>{"name": "lookup"}</tool_call> 42<|im_end|>'
    assert wide.encode(text) == own.encode(text)
    assert (wide.eos_token_id, wide.pad_token_id) == (own.eos_token_id, own.pad_token_id)


def test_a_model_that_is_stopped_keeps_its_curve(tmp_path):
    job, model = make_job(tmp_path, part="e2e"), e2e_part.Model(name="opd seed 0", seed=0, method="opd")
    paths = SimpleNamespace(
        root=tmp_path, run=lambda name: tmp_path / "run", result=lambda name: tmp_path / "run" / "result.json"
    )
    (tmp_path / "opd seed 0.log").write_text("one\nValueError: odd\n")
    row = e2e_part._row(job, paths, model, SimpleNamespace(exitcode=1))
    assert (row["status"], row["reason"]) == ("failed", "It ended with 1: ValueError: odd")
    (tmp_path / "run").mkdir()
    lines = [
        {"kind": "eval", "round": 0, "update": 0, "eval/success_mean": 0.25},
        {"kind": "round", "round": 0, "update": 3},
        {"kind": "eval", "round": 5, "update": 15, "eval/success_mean": 0.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "run" / "metrics.jsonl").write_text(text + '{"kind": "ev')
    row = e2e_part._row(job, paths, model, SimpleNamespace(exitcode=None))
    assert (row["success_start"], row["success_end"], row["updates"]) == (0.25, 0.5, 15)
    assert row["curve"][1] == {"round": 5, "update": 15, "success": 0.5}
    assert row["reason"] == "It was still running."
