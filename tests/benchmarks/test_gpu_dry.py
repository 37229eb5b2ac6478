"""Every part without a GPU, on tiny sizes: what `make gpu-dry` runs, in this process where it can be."""

import json
import os

import pytest

from benchmarks.gpu import build_part, worker
from benchmarks.gpu.plan import PARTS
from benchmarks.gpu.sheet import read_sheet, render
from benchmarks.record import read

ORIGIN = {
    "device": "Test CPU",
    "kind": "cpu",
    "git_sha": "0123456789abcdef",
    "git_is_clean": True,
    "versions": {},
    "time": "2026-01-02T03:04:05Z",
    "is_dry": True,
}
WANTED = {
    "build": {"native modules", "load native cpu", "Triton ahead of time, sm_90"},
    "correctness": {
        "test_family_device.py::test_odd_vocabulary_apart_rows_infinities_and_cut_steps",
        "test_family_device.py::test_a_graph_replays_on_new_values",
    },
    "limits": {"copy 1 MiB", "read (sum) 1 MiB", "tiny: gradient of the head, (515 x 16) (n = 16)"},
    "bench": {"topk_step_kl | forward | tiny | 24 | float32 | torch eager"},
    "sanitize": {"none, step_kl native"},
    "counters": {"step_kl reference without ncu"},
    "e2e": {"teacher", "student seed 0", "two targets seed 0"},
}


def run(part, folder):
    (folder / "origin.json").write_text(json.dumps(ORIGIN))
    settings = {"is_dry": True, "resume": False, "limit_s": 600.0, "peers": folder / "none"}
    return worker.work(part, folder, **settings)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_dry(part, tmp_path, monkeypatch):
    # The part "e2e" sets these for the processes that it starts.
    for name in ("PYTHONPATH", "TOKENIZERS_PARALLELISM", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    # `make gpu-dry` compiles it; the tests of the compiler do so with every kernel.
    monkeypatch.setattr(build_part, "compile_ahead", lambda job: f"sm_{job.architecture}")
    status = run(part, tmp_path)
    sheet = read_sheet(tmp_path / f"{part}.json")
    assert (status, sheet.content["reason"]) == ("ok", None), sheet.content
    text = render(sheet, PARTS[part].columns)
    for item in WANTED[part]:
        assert item in text
    assert not [row for row in sheet.rows if row["status"] in ("failed", "wrong")]
    assert [path.name for path in tmp_path.iterdir() if path.suffix not in (".json",)] == []
    if part == "bench":
        # It is a record of `benchmarks.run` as well, and says that a peer is missing.
        rows = read(sheet.path).rows
        absent = [row for row in rows if row.contestant.startswith("TRL")]
        assert absent
        assert all("trl cannot be imported" in row.reason for row in absent)
    if part == "e2e":
        method = sheet.rows[-1]
        assert [point["round"] for point in method["curve"]] == [0, 1]
        assert 0.0 <= method["success_clean"] <= 1.0
