"""What the doctor says of a pair of tokenizers, by what they share."""

from __future__ import annotations

import pytest

from sod.doctor.findings import Findings, Level
from sod.doctor.pairs import judge_report
from sod_kernels import SampleCoverage, VocabReport


def report(*, shared=900, failed=0, one_to_one=80, samples=4):
    coverage = SampleCoverage(
        num_samples=samples,
        num_failed=failed,
        first_failure="segment 0, byte 3" if failed else None,
        num_units=90,
        num_one_to_one=one_to_one,
        num_shared=one_to_one,
        num_student_tokens=100,
    )
    return VocabReport(
        num_student_tokens=1000,
        num_teacher_tokens=2000,
        num_shared=shared,
        bridged=("<|im_end|> = <|eot_id|>",),
        student_examples=(),
        teacher_examples=(),
        coverage=coverage if samples else None,
    )


CASES = {
    "good": (
        {},
        "shared columns",
        Level.OK,
        "900 shared text tokens: 90.0 % of the student's, 45.0 % of the",
    ),
    "few columns": ({"shared": 300}, "shared columns", Level.WARNING, "the teacher says nothing of a token"),
    "good units": ({}, "units", Level.OK, "80.0 % of 100 tokens of 4 prompts are in units of one token"),
    "few units": (
        {"one_to_one": 40},
        "units",
        Level.WARNING,
        'compare with [algorithm] unit_filter = "one_to_one"',
    ),
    "some fail": (
        {"failed": 1},
        "units",
        Level.WARNING,
        "1 of 4 prompts do not align, so what a student writes",
    ),
    "all fail": ({"failed": 4}, "units", Level.FATAL, "4 of 4 prompts do not align"),
    "no text": ({"samples": 0}, "units", Level.NOTE, "the tasks hold no text to align"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_pair_is_graded_by_what_it_shares(name):
    settings, subject, level, words = CASES[name]
    findings = Findings()
    judge_report(findings, report(**settings))
    found = [each for each in findings if each.subject == subject]
    assert any(each.level is level and words in each.text for each in found), list(findings)
    assert findings.is_fatal == (level is Level.FATAL)
