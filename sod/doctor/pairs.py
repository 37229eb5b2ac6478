"""Examines what a student and a teacher with another tokenizer have in common."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sod.chat import ChatRenderer
from sod.config import RunConfig
from sod.config_teachers import TeacherSection
from sod.doctor.findings import Findings, Level
from sod.models import load_tokenizer
from sod.pairing import pair_tokenizers
from sod.translation import TokenizerPair
from sod.types import Task
from sod_kernels import VocabReport

_FEW = 0.5


def examine_pair(
    findings: Findings,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    renderer: ChatRenderer,
    tasks: Sequence[Task],
) -> TokenizerPair | None:
    """Examine the coverage of a pair of tokenizers, on the run's own prompts.

    Args:
        findings: Written to.
        config: The settings, with a teacher.
        tokenizer: The student's.
        renderer: The student's.
        tasks: The run's.

    Returns:
        The pair; None where the algorithm needs equal ids, or the two cannot be paired.
    """
    pair = None
    with findings.examining("teacher", "tokenizer"):
        if isinstance(config.teacher, TeacherSection) and not config.algorithm.needs_equal_ids:
            pair = pair_tokenizers(config, (tokenizer, load_tokenizer(config.teacher)), renderer)
        if pair is not None:
            judge_report(findings, pair.report(tasks))
    return pair


def judge_report(findings: Findings, report: VocabReport) -> None:
    """Grade what two tokenizers share.

    Args:
        findings: Written to.
        report: Of the pair, on the run's prompts.
    """
    _judge_columns(findings, report)
    _judge_units(findings, report)


def _judge_columns(findings: Findings, report: VocabReport) -> None:
    share = report.num_shared / max(1, report.num_student_tokens)
    of_teacher = report.num_shared / max(1, report.num_teacher_tokens)
    text = (
        f"{report.num_shared:,} shared text tokens: {100 * share:.1f} % of the student's, "
        f"{100 * of_teacher:.1f} % of the teacher's; {', '.join(report.bridged) or 'no control token'}"
    )
    if share < _FEW:
        text += "; without a column the teacher says nothing of a token"
    findings.add("teacher", "shared columns", text, Level.WARNING if share < _FEW else Level.OK)


def _judge_units(findings: Findings, report: VocabReport) -> None:
    sample = report.coverage
    if sample is None:
        findings.add("teacher", "units", "the tasks hold no text to align", Level.NOTE)
        return
    if sample.num_failed:
        is_all = sample.num_failed == sample.num_samples
        findings.add(
            "teacher",
            "units",
            f"{sample.num_failed} of {sample.num_samples} prompts do not align, so what a student writes may "
            f"not either: {sample.first_failure}",
            Level.FATAL if is_all else Level.WARNING,
        )
        if is_all:
            return
    share = sample.num_one_to_one / max(1, sample.num_student_tokens)
    text = (
        f"{100 * share:.1f} % of {sample.num_student_tokens:,} tokens of {sample.num_samples} prompts are in "
        "units of one token on each side"
    )
    if share < _FEW:
        text += '; most supervision comes from spans, compare with [algorithm] unit_filter = "one_to_one"'
    findings.add("teacher", "units", text, Level.WARNING if share < _FEW else Level.OK)
