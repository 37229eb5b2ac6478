"""What the README, the quickstart and the examples show must run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
CODE = [
    pytest.param(block, id=f"{path.relative_to(ROOT)}:{number}")
    for path in DOCUMENTS
    for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", path.read_text(), re.M | re.S))
]


@pytest.mark.parametrize("code", CODE)
def test_python_in_the_documents_runs(code):
    exec(compile(code, "<document>", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}, which does not exist"


def test_the_first_example_shows_falling_weights():
    result = subprocess.run(
        [sys.executable, ROOT / "examples" / "01_step_kl.py"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    weights = [float(line.split()[-1]) for line in result.stdout.splitlines()[2:]]
    assert weights[0] == weights[3] == 1.0
    assert weights[0] > weights[1] > weights[2] > 0.0
    assert weights[3] > weights[4] > weights[5] > 0.0


def test_readme_names_the_command_that_ci_runs():
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("make test")
    assert "make test " in (ROOT / "README.md").read_text()
