"""The plots show the numbers they were given."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from sod.report.plots import Curve, binomial_error, plot_steps, plot_success


def _pixels(path: Path):
    image = pytest.importorskip("matplotlib.image")
    return image.imread(path)


def test_success_plot_draws_every_curve_and_level(tmp_path: Path) -> None:
    first = Curve(label="OPD", x=(0, 4, 8), y=(0.4, 0.6, 0.7), error=(0.03, 0.03, 0.03))
    second = Curve(label="SOD", x=(0, 4, 8), y=(0.4, 0.5, 0.9))
    plot_success(tmp_path / "plots" / "one.png", [first])
    plot_success(tmp_path / "two.png", [first, second], levels={"teacher": 0.95}, title="Success")
    one, two = _pixels(tmp_path / "plots" / "one.png"), _pixels(tmp_path / "two.png")
    assert one.shape == two.shape
    assert not (one == two).all()

    # The second colour is there only when a second curve is.
    def count_red(picture) -> int:
        return int(((picture[..., 0] > 0.7) & (picture[..., 1] < 0.4) & (picture[..., 2] < 0.5)).sum())

    assert count_red(one) == 0
    assert count_red(two) > 200


def test_step_plot_has_two_panels(tmp_path: Path) -> None:
    curve = Curve(label="SOD", x=(1, 2, 3), y=(0.1, 0.4, 0.8))
    plot_steps(tmp_path / "steps.png", [curve], [Curve(label="SOD", x=(1, 2, 3), y=(1.0, 0.3, 0.1))])
    picture = _pixels(tmp_path / "steps.png")
    blue = (picture[..., 2] > 0.5) & (picture[..., 0] < 0.3)
    middle = picture.shape[1] // 2
    assert blue[:, :middle].sum() > 200
    assert blue[:, middle:].sum() > 200


def test_binomial_error_is_the_textbook_one() -> None:
    assert binomial_error(0.5, 100) == pytest.approx(0.05)
    assert binomial_error(0.9, 200) == pytest.approx(math.sqrt(0.09 / 200))
    assert binomial_error(1.0, 10) == 0.0
    with pytest.raises(ValueError, match=r"rate=1\.2, num_trials=10; the rate must lie in \[0, 1\]"):
        binomial_error(1.2, 10)
    with pytest.raises(ValueError, match="num_trials=0"):
        binomial_error(0.5, 0)


def test_bad_curves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x, y and error have 2, 1 and 0 values"):
        Curve(label="a", x=(1, 2), y=(1,))
    with pytest.raises(ValueError, match="plot_success: no curve to draw"):
        plot_success(tmp_path / "a.png", [])
    with pytest.raises(ValueError, match="plot_steps: no curve to draw"):
        plot_steps(tmp_path / "a.png", [], [])
