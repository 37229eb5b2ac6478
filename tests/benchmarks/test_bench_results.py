"""Files, table, plots and comparison, from a made run."""

from dataclasses import replace

import pytest
from documents import ABSENT, BAD, EAGER, OURS, QUICKER, document

from benchmarks.compare import compare
from benchmarks.compare import main as compare_main
from benchmarks.ours import LOGITS_PATH
from benchmarks.plots import draw_growth, draw_roofline
from benchmarks.record import path_of, read, write
from benchmarks.table import render


def test_a_run_is_read_as_it_was_written(tmp_path):
    run = document(OURS, EAGER, ABSENT)
    write(run, tmp_path / "new" / "run.json")
    assert read(tmp_path / "new" / "run.json") == run


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"rows": [{"colour": 1}], "bandwidth": {"read": 1, "copy": 1}}')
    with pytest.raises(ValueError, match=r"other.json is no result of benchmarks.run"):
        read(path)


def test_results_lie_under_the_device_and_name_time_and_commit(tmp_path):
    path = path_of(document().origin, tmp_path)
    assert path == tmp_path / "test-cpu-2-cores" / "20260102T030405Z-012345678"


def test_table_is_ordered_by_time_and_says_why_others_are_missing():
    text = render(document(ABSENT, EAGER, OURS, BAD, QUICKER))
    lines = [line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")]
    assert lines == ["contestant", "torch.compile", "step_kl native", "torch eager"]
    assert "| step_kl native | 10.0 | 9.0 – 12.0 | 4.2 | 3.6 | 40.0 | 8 | 1e-07 | 2e-07 |" in text
    assert "- Liger LigerJSD: skipped: It needs a GPU." in text
    assert "- fla FusedKLDivLoss: wrong: Off. Loss off by 5e-01, gradient by 3e+00." in text
    assert "limit 4.0 ms" in text
    assert "Commit 012345678, 2026-01-02T03:04:05Z; torch 2.13.0." in text


def test_losses_are_printed_as_plainly_as_wins():
    text = render(document(OURS, EAGER, QUICKER))
    assert "- win 2.50x, step_kl forward+backward, small, N=512, float32: step_kl native 10.0 ms, " in text
    assert "torch eager 25.0 ms, memory 8 against 64 MiB" in text
    assert "- **LOSS** 0.80x, " in text


def test_a_weighted_row_of_ours_is_not_set_against_peers():
    weighted = replace(OURS, contestant="step_kl native + SOD weights", median_s=0.001)
    assert "win 2.50x" in render(document(weighted, OURS, EAGER))
    assert "Nothing of ours was timed." in render(document(weighted, EAGER))


def test_memory_is_set_against_the_way_through_logits():
    gradients = (512 + 4096) * 256 * 4
    case = {"op": "linear_step_kl", "vocab": 4096, "student_width": 256}
    ours = replace(OURS, contestant="linear_step_kl native", peak_extra_bytes=gradients + 2**20, **case)
    through_logits = replace(EAGER, contestant=LOGITS_PATH, peak_extra_bytes=gradients + 24 * 2**20, **case)
    text = render(document(ours, through_logits))
    assert "small, N=512, float32: linear_step_kl native 6 MiB at the peak" in text
    assert f"{LOGITS_PATH} 28 MiB, 5.2 times as much" in text
    assert "beyond the 4 MiB of gradients that both return 1 and 24 MiB, 24.0 times as much" in text
    assert "Memory" not in render(document(ours))


def test_uncommitted_changes_are_said():
    assert "with changes not committed" in render(document(OURS, git_is_clean=False))


def test_comparison_gives_the_ratio_of_the_second_to_the_first():
    later = replace(OURS, median_s=0.005, peak_extra_bytes=4 * 2**20)
    text = compare(document(OURS, EAGER), document(later, QUICKER))
    expected = "| step_kl forward+backward, small, N=512, float32 | step_kl native | 10.0 | 5.0 | 0.50 "
    assert expected + "| 40.0 | 80.0 | 8 | 4 |" in text
    assert "only in A: step_kl forward+backward, small, N=512, float32, torch eager" in text
    assert "only in B: step_kl forward+backward, small, N=512, float32, torch.compile" in text
    assert "devices differ" not in text


def test_comparison_of_two_devices_says_so_and_shows_who_did_not_run():
    present = replace(OURS, contestant=ABSENT.contestant)
    text = compare(document(ABSENT, BAD), document(present, BAD, device="Another"))
    assert "The devices differ" in text
    assert "| Liger LigerJSD | skipped | 10.0 | – | – | 40.0 |" in text
    assert BAD.contestant not in text


def test_compare_reads_files(tmp_path, capsys):
    for name, row in (("a", OURS), ("b", replace(OURS, median_s=0.02))):
        write(document(row), tmp_path / f"{name}.json")
    assert compare_main([str(tmp_path / "a.json"), str(tmp_path / "b.json")]) == 0
    assert "| 10.0 | 20.0 | 2.00 |" in capsys.readouterr().out


def test_compare_names_a_file_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        compare_main([str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "a.json" in capsys.readouterr().err


@pytest.mark.parametrize("draw", [draw_roofline, draw_growth])
@pytest.mark.parametrize(
    "rows", [(), (OURS, EAGER, ABSENT), (OURS, replace(OURS, rows=2048, median_s=0.04))], ids=len
)
def test_plots_are_drawn_whatever_was_measured(draw, rows, tmp_path):
    path = tmp_path / "deep" / "plot.png"
    draw(document(*rows), path)
    assert path.read_bytes().startswith(b"\x89PNG")
