"""The command, end to end on a tiny case."""

import json

import pytest
import torch

from benchmarks import run

TINY = ["--profile", "quick", "--pairs", "small", "--rows", "16", "--budget", "0.01"]


def test_a_run_leaves_table_record_and_plots(tmp_path, capsys):
    arguments = [*TINY, "--contestants", "eager|reference$|Liger", "--peers", str(tmp_path / "none")]
    assert run.main([*arguments, "--output", str(tmp_path)]) == 0
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".md", ".png", ".png"]
    (record,) = folder.glob("*.json")
    rows = json.loads(record.read_text())["rows"]
    by_op = {row["op"] for row in rows}
    assert by_op == {"step_kl", "linear_step_kl", "topk_step_kl"}
    timed = {(row["op"], row["contestant"]) for row in rows if row["status"] == "ok"}
    assert ("step_kl", "torch eager") in timed
    assert ("step_kl", "step_kl reference") in timed
    assert all(row["reason"] for row in rows if row["status"] != "ok")
    printed = capsys.readouterr().out
    assert "## Wins and losses" in printed
    assert "gradient by" in printed.split("## Wins")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rows", "0"], "--rows takes counts of at least 1, got [0]"),
        (["--ops", "step_lk"], "invalid choice: 'step_lk'"),
        (["--contestants", "("], "--contestants takes a regular expression, got '('"),
        (["--budget", "-1"], "--budget takes seconds above 0, got -1.0"),
    ],
)
def test_a_wrong_argument_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert message in capsys.readouterr().err


def test_a_case_that_no_profile_has_is_named_by_the_command(capsys):
    with pytest.raises(SystemExit):
        run.main(["--profile", "quick", "--pairs", "llama3.2-1b-from-8b"])
    assert "name --rows as well" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_run_on_a_gpu_times_peers_and_torch(tmp_path):
    arguments = ["--device", "cuda", *TINY, "--contestants", "eager|triton|fla|Liger"]
    assert run.main([*arguments, "--output", str(tmp_path)]) == 0
    (record,) = tmp_path.glob("*/*.json")
    rows = json.loads(record.read_text())["rows"]
    eager = [row for row in rows if row["contestant"] == "torch eager"]
    assert {row["status"] for row in eager} == {"ok"}
    assert all(row["peak_extra_bytes"] > 0 for row in eager if row["sweeps"] == "forward+backward")
