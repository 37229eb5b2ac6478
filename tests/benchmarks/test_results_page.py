"""RESULTS.md is what the records say, losses and gaps included."""

from dataclasses import asdict, replace

import pytest
from documents import ABSENT, EAGER, ORIGIN, OURS, QUICKER

from benchmarks import results_page
from benchmarks.gpu.sheet import Sheet
from benchmarks.limits import Bandwidth
from benchmarks.record import Document, path_of, write
from benchmarks.shapes import QWEN
from benchmarks.stored import read_all
from benchmarks.targets import TARGETS, judge

GPU_ORIGIN = {**ORIGIN, "device": "Test GPU", "kind": "cuda", "threads": None, "capability": [9, 0]}
BANDWIDTH = Bandwidth(read=4.0e12, copy=4.0e12)


def stored(folder, *rows, **origin):
    document = Document(
        origin={**ORIGIN, **origin}, bandwidth=BANDWIDTH, matmul_flops_per_s=1e11, rows=list(rows)
    )
    write(document, path_of(document.origin, folder).with_suffix(".json"))
    return document


def gpu_row(op, sweeps, rows, median_s, *, limit_s=1e-3, contestant=None, kind="ours", **more):
    return replace(
        OURS,
        op=op,
        sweeps=sweeps,
        pair=QWEN,
        rows=rows,
        vocab=151_936,
        student_width=1024,
        teacher_width=2560,
        dtype="bfloat16",
        contestant=contestant or f"{op} triton",
        kind=kind,
        median_s=median_s,
        limit_s=limit_s,
        **more,
    )


def test_the_committed_page_is_what_the_records_give():
    assert results_page.main(["--check"]) == 0, "run `make results`"


def test_every_committed_record_is_read():
    paths = {each.path.name for each in read_all(results_page.RESULTS)}
    assert paths == {path.name for path in results_page.RESULTS.rglob("*.json")}
    assert any(
        row.limit_s
        for each in read_all(results_page.RESULTS)
        for row in each.rows
        if each.content.get("cases")
    )


def test_wins_losses_absences_and_memory_are_all_there(tmp_path):
    stored(tmp_path, OURS, EAGER, QUICKER, ABSENT)
    text = results_page.page(tmp_path)
    assert (
        "| shape | commit | ours ms | backend | limit ms | % of limit | torch eager | torch.compile |" in text
    )
    assert (
        "| small, N = 512, float32 | 012345678 | 10 | native | 4 | 40 | 25 (2.50 ×) | **8 (0.80 ×)** |"
        in text
    )
    assert "| small, N = 512, float32 | 8 | 64 | 8 |" in text
    assert (
        "- step_kl forward+backward, small, N = 512, float32: torch.compile takes 8 ms, ours 10 ms (1.25 ×)"
        in text
    )
    assert "- Liger LigerJSD: skipped: It needs a GPU." in text
    assert "Growth with N: not measured at two N of a shape in one run." in text


def test_growth_is_time_per_token(tmp_path):
    stored(tmp_path, OURS, replace(OURS, rows=2048, median_s=0.042))
    assert (
        "- small, float32, N = 512, 2,048: 19.53, 20.51 µs per token, 1.05 × over all"
        in results_page.page(tmp_path)
    )


def test_a_case_comes_from_its_newest_run_that_has_others_to_compare_with(tmp_path):
    stored(tmp_path, OURS, EAGER)
    stored(tmp_path, replace(OURS, median_s=0.02), replace(EAGER, median_s=0.06), time="2026-02-01T00:00:00Z")
    stored(tmp_path, replace(OURS, median_s=0.03), time="2026-03-01T00:00:00Z")
    text = results_page.page(tmp_path)
    assert "| 20 | native | 4 | 20 | 60 (3.00 ×) |" in text
    assert "25 (2.50" not in text


def test_without_a_gpu_every_target_and_part_is_not_measured(tmp_path):
    stored(tmp_path, OURS)
    text = results_page.page(tmp_path)
    assert "No GPU has been measured." in text
    assert text.count("| not measured |  |") == len(TARGETS)
    assert text.count(": not measured.\n") == 6


def test_a_gpu_run_fills_targets_and_parts(tmp_path):
    rows = [
        gpu_row("step_kl", "forward", 8192, 1.2e-3, bytes_per_s=3.7e12),
        gpu_row("step_kl", "forward+backward", 8192, 4.0e-3, limit_s=2.9e-3),
        gpu_row("step_kl", "forward+backward", 4096, 1.5e-3),
        gpu_row("step_kl", "forward+backward", 16_384, 6.3e-3),
        gpu_row("linear_step_kl", "forward+backward", 8192, 20e-3, limit_s=17e-3, peak_extra_bytes=1 << 31),
    ]
    name = "TRL ChunkedDivergenceFunction"
    rows.append(gpu_row("linear_step_kl", "forward+backward", 8192, 50e-3, contestant=name, kind="peer"))
    folder = tmp_path / "test-gpu" / "20260102T030405Z-012345678-gpu"
    bench = Sheet.begin(folder, "bench", {**GPU_ORIGIN, "bandwidth": asdict(BANDWIDTH)}, resume=False)
    bench.add(asdict(row) for row in rows)
    bench.finish("ok", None, 100.0)
    limits = Sheet.begin(folder, "limits", GPU_ORIGIN, resume=False)
    limits.add([{"item": "copy", "status": "ok", "reason": None, "gb_per_s": 4000.0}])
    e2e = Sheet.begin(folder, "e2e", GPU_ORIGIN, resume=False)
    for seed, end in ((0, 0.5), (1, 0.6)):
        curve = [{"round": 0, "update": 0, "success": 0.25}, {"round": 40, "update": 120, "success": end}]
        e2e.add([{"item": f"opd seed {seed}", "status": "ok", "reason": None, "curve": curve}])
    e2e.finish("ok", None, 500.0)
    limits.finish("killed", "It ran past its limit of 40 s; what it had is kept.", 40.0)
    text = results_page.page(tmp_path)
    assert "Measured on Test GPU." in text
    assert "at least 90 % of the copy bandwidth | 92 % of 4.00 TB/s | met |" in text
    assert "(3.2 ms on an H200) | 1.38 × (4.00 ms) | **missed** |" in text
    assert "at least 1.5 × as fast as TRL's kernel | 2.50 × | met |" in text
    assert "`linear_step_kl`: at most 2 GB beyond the gradients | 1.69 GiB | met |" in text
    assert "that at N = 4,096 | 1.050 | met |" in text
    assert "Liger's chunked loss | not measured |  |" in text
    assert "- opd seed 0: 0: 0.250, 40: 0.500" in text
    assert "- opd, 2 seeds: +30.0 ± 5.0 points over the cold student" in text
    assert "### limits: killed, 40 s: It ran past its limit" in text
    assert "Test GPU, run 20260102T030405Z-012345678-gpu/limits." in text


def test_a_dry_run_is_no_result(tmp_path):
    stored(tmp_path, OURS)
    before = results_page.page(tmp_path)
    dry = Sheet.begin(tmp_path / "dry", "limits", {**GPU_ORIGIN, "is_dry": True}, resume=False)
    dry.finish("ok", None, 1.0)
    assert results_page.page(tmp_path) == before


def test_records_of_another_kind_are_listed(tmp_path):
    stored(tmp_path, OURS)
    (tmp_path / "test-cpu-2-cores" / "sandbox.json").write_text('{"calls": 3}')
    assert "- test-cpu-2-cores: `test-cpu-2-cores/sandbox.json`" in results_page.page(tmp_path)


def test_nothing_to_judge_is_nothing_met():
    assert {verdict for _, _, verdict in judge(None)} == {""}


@pytest.mark.parametrize("text", ["old", None])
def test_an_old_page_is_seen(text, tmp_path, monkeypatch):
    stored(tmp_path, OURS)
    monkeypatch.setattr(results_page, "RESULTS", tmp_path)
    monkeypatch.setattr(results_page, "ROOT", tmp_path)
    monkeypatch.setattr(results_page, "PAGE", tmp_path / "RESULTS.md")
    if text is None:
        assert results_page.main([]) == 0
        assert (tmp_path / "test-cpu-2-cores" / "roofline.png").read_bytes().startswith(b"\x89PNG")
    else:
        results_page.PAGE.write_text(text)
    assert results_page.main(["--check"]) == (0 if text is None else 1)
