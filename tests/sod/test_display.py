"""What a run shows, on a terminal and in a log."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from sod.loop.display import Display

METRICS = {
    "loss/total": 0.125,
    "kl/token_mean": 0.5,
    "rollout/success_mean": 0.25,
    "time/tokens_per_s": 321.0,
}


def shown(*, is_terminal, is_quiet=False):
    stream = StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=200)
    with Display(console, is_quiet=is_quiet) as display:
        display.begin(2, 4)
        display.part("rollout", 3, 8)
        display.end_round(3, METRICS)
        display.warn("watch [this]")
        display.line("a [line]")
    return stream.getvalue()


def test_a_log_has_one_line_per_round_with_numbers_and_eta():
    lines = shown(is_terminal=False).splitlines()
    assert lines[0].startswith("round 3/4  loss 0.125  kl 0.5  success 0.25  tok/s 321  eta 0:00")
    assert lines[1:] == ["warning: watch [this]", "a [line]"]


def test_a_terminal_has_bars_too():
    text = shown(is_terminal=True)
    assert "rounds" in text
    assert "rollout" in text
    assert "round 3/4" in text


def test_quiet_shows_warnings_alone():
    assert shown(is_terminal=True, is_quiet=True).count("\n") == 1
    assert "watch [this]" in shown(is_terminal=True, is_quiet=True)
