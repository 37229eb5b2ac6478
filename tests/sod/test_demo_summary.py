"""The demo's verdict follows the numbers, whichever method they favour."""

from __future__ import annotations

import math

import pytest

from sod.demo.summary import Reading, difference, step_table, summary_table, to_json, verdict


def _reading(name: str, solved: str, **rest) -> Reading:
    is_solved = tuple(mark == "x" for mark in solved)
    return Reading(name=name, is_solved=is_solved, errors=(1,) * len(solved), **rest)


def test_difference_keeps_the_pairing() -> None:
    first, second = _reading("a", "xxxx...."), _reading("b", "xx......")
    gap = difference(first, second)
    assert gap.points == pytest.approx(25.0)
    # Two of eight questions differ: variance of (1,1,0,0,0,0,0,0) with n-1 is 3/14.
    assert gap.error == pytest.approx(100 * math.sqrt(3 / 14 / 8))
    assert difference(first, first).points == 0.0
    assert not difference(first, first).is_clear


@pytest.mark.parametrize("winner", ["OPD", "SOD", "control"])
def test_verdict_names_whoever_won(winner: str) -> None:
    solved = dict.fromkeys(("OPD", "SOD", "control"), "x" * 60 + "." * 40) | {winner: "x" * 90 + "." * 10}
    readings = [_reading("cold", "x" * 30 + "." * 70), *(_reading(*item) for item in solved.items())]
    sentences = verdict(readings, baseline="cold", methods=("OPD", "SOD", "control"))
    assert sentences[0].startswith(f"Best after training: {winner}, 90.0% of 100 held-out questions; +60.0")
    assert sum("(ahead)" in sentence for sentence in sentences) == 2


def test_verdict_does_not_claim_what_noise_explains() -> None:
    readings = [_reading("cold", "x.x.x.x."), _reading("OPD", "xxx.x.x."), _reading("SOD", ".xxxx.x.")]
    sentences = verdict(readings, baseline="cold", methods=("OPD", "SOD"))
    assert "which is not a clear gain" in sentences[0]
    assert "no clear difference" in sentences[1]


def test_table_and_json_say_the_same() -> None:
    readings = [
        _reading("cold", "x...", num_updates=200, seconds=12.4),
        _reading("OPD", "xxx.", sampled_success=0.5, num_updates=96, seconds=30.0),
    ]
    table = summary_table(readings, baseline="cold")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert len({len(row) for row in rows}) == 1
    assert rows[2][:2] == ["cold", "25.0 ± 21.7%"]
    assert rows[3] == ["OPD", "75.0 ± 21.7%", "+50.0 ± 28.9 points", "1.00", "50.0%", "96", "30 s"]
    kept = to_json(readings, baseline="cold", methods=("OPD",))
    assert kept["gains"]["OPD"]["points"] == 50.0
    assert kept["readings"][1]["success"] == 0.75


def test_step_table_puts_the_rounds_side_by_side() -> None:
    first = {
        "round": 0,
        "step/turns": [0.0, 1.0],
        "step/divergence_by_turn": [0.1, 0.5],
        "step/weight_by_turn": [1.0, 0.25],
        "step/count_by_turn": [8.0, 4.0],
    }
    last = {
        "round": 11,
        "step/turns": [0.0],
        "step/divergence_by_turn": [0.02],
        "step/weight_by_turn": [1.0],
        "step/count_by_turn": [8.0],
    }
    lines = step_table("SOD", first, last).splitlines()
    assert lines[0] == "| SOD: step k | d_k, round 1 | w_k | steps | d_k, round 12 | w_k | steps |"
    assert lines[2] == "| 1 | 0.100 | 1.00 | 8 | 0.020 | 1.00 | 8 |"
    assert lines[3].startswith("| 2 | 0.500 | 0.25 | 4 |")
    assert len({line.count("|") for line in lines}) == 1


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'a' answered 2 questions and 'b' 1; compare readings of the same"):
        difference(_reading("a", "xx"), _reading("b", "x"))
    with pytest.raises(ValueError, match="is_solved and errors have 1 and 0 values"):
        Reading(name="a", is_solved=(True,), errors=())
    with pytest.raises(ValueError, match="there is no reading named 'SOD'; there are a"):
        verdict([_reading("a", "x")], baseline="a", methods=("SOD",))
