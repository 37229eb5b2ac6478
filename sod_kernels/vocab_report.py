"""What two tokenizers have in common, for a look before a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sod_kernels import vocab_matching
from sod_kernels._checks import units as _unit_checks
from sod_kernels._checks import values as _checks
from sod_kernels.alignment import AlignmentError, align_units
from sod_kernels.token_bytes import TokenBytes
from sod_kernels.units import VocabMap

Ids = Tensor | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class SampleCoverage:
    """How the units of sample texts came out; counts over all samples that aligned.

    Attributes:
        num_samples: Samples given.
        num_failed: Samples whose two sides do not spell the same text.
        first_failure: Message of the first of those, or None.
        num_units: Minimal units.
        num_one_to_one: Units with one token on each side.
        num_shared: Of these, units whose two tokens share a column.
        num_student_tokens: Tokens of the student in units.
    """

    num_samples: int
    num_failed: int
    first_failure: str | None
    num_units: int
    num_one_to_one: int
    num_shared: int
    num_student_tokens: int


@dataclass(frozen=True, kw_only=True)
class VocabReport:
    """What two vocabularies share; `str` makes it readable.

    Attributes:
        num_student_tokens: Text tokens of the student.
        num_teacher_tokens: Text tokens of the teacher.
        num_shared: Text tokens that share a column.
        bridged: Control tokens that share a meaning, "student = teacher".
        student_examples: Text tokens of the student without a column, those with the smallest ids.
        teacher_examples: The teacher's.
        coverage: On sample texts; None without.
    """

    num_student_tokens: int
    num_teacher_tokens: int
    num_shared: int
    bridged: tuple[str, ...]
    student_examples: tuple[str, ...]
    teacher_examples: tuple[str, ...]
    coverage: SampleCoverage | None

    def __str__(self) -> str:
        of_student = _percent(self.num_shared, self.num_student_tokens)
        of_teacher = _percent(self.num_shared, self.num_teacher_tokens)
        lines = [
            f"shared text tokens: {self.num_shared:,} ({of_student} of the student's "
            f"{self.num_student_tokens:,}, {of_teacher} of the teacher's {self.num_teacher_tokens:,})",
            f"bridged control tokens: {', '.join(self.bridged) or 'none'}",
            f"only the student has: {'  '.join(self.student_examples) or 'nothing'}",
            f"only the teacher has: {'  '.join(self.teacher_examples) or 'nothing'}",
        ]
        sample = self.coverage
        if sample is not None:
            one_to_one = _percent(sample.num_one_to_one, sample.num_student_tokens)
            shared = _percent(sample.num_shared, sample.num_student_tokens)
            lines.append(
                f"on {sample.num_samples} samples: {one_to_one} of {sample.num_student_tokens:,} student "
                f"tokens are in 1:1 units, {shared} with a shared column; "
                f"{sample.num_failed} samples did not align"
            )
        if sample is not None and sample.first_failure is not None:
            lines.append(f"first that did not: {sample.first_failure}")
        return "\n".join(lines)


def vocab_report(
    vocab_map: VocabMap, samples: Iterable[tuple[Ids, Ids]] = (), *, num_examples: int = 10
) -> VocabReport:
    """Report what a pair of tokenizers shares, and on sample texts how much of them is in 1:1 units.

    Args:
        vocab_map: Map made by `VocabMap.from_tokenizers`.
        samples: For each sample text the student's ids and the teacher's ids, without special tokens.
        num_examples: How many tokens without a column to show of each side.

    Returns:
        The report.

    Raises:
        TypeError: If vocab_map is no `VocabMap`, or num_examples no integer.
        ValueError: If the map knows no tokenizers, or a sample's id is out of range.
    """
    if not isinstance(vocab_map, VocabMap):
        raise TypeError(f"vocab_report: vocab_map is {type(vocab_map).__name__}; wanted a VocabMap.")
    tables = _unit_checks.check_has_tables("vocab_report", vocab_map)
    _checks.check_count("vocab_report", "num_examples", num_examples, at_least=0)
    columns = vocab_map.student_columns.tolist(), vocab_map.teacher_columns.tolist()
    student, teacher = tables
    return VocabReport(
        num_student_tokens=_num_text(student),
        num_teacher_tokens=_num_text(teacher),
        num_shared=sum(student.spelled[column] is not None for column in columns[0]),
        bridged=tuple(f"{student.names[a]} = {teacher.names[b]}" for a, b in vocab_map.bridge),
        student_examples=_examples(columns[0], student, num_examples),
        teacher_examples=_examples(columns[1], teacher, num_examples),
        coverage=_coverage(vocab_map, list(samples)),
    )


def _coverage(vocab_map: VocabMap, samples: list[tuple[Ids, Ids]]) -> SampleCoverage | None:
    if not samples:
        return None
    partner = torch.full((int(vocab_map.student_columns.max()) + 1,), -1)
    partner[vocab_map.student_columns.cpu()] = vocab_map.teacher_columns.cpu()
    failures: list[str] = []
    num_units = num_one_to_one = num_shared = num_tokens = 0
    for student_ids, teacher_ids in samples:
        try:
            units = align_units(student_ids, teacher_ids, vocab_map)
        except AlignmentError as error:
            failures.append(str(error))
            continue
        is_single = units.is_one_to_one()
        tokens = torch.as_tensor(student_ids, dtype=torch.int64)[units.student_spans[is_single, 0]]
        others = torch.as_tensor(teacher_ids, dtype=torch.int64)[units.teacher_spans[is_single, 0]]
        is_known = tokens < partner.numel()
        num_units += len(units)
        num_one_to_one += int(is_single.sum())
        num_shared += int((partner[tokens[is_known]] == others[is_known]).sum())
        num_tokens += int(units.student_spans.diff(dim=1).sum())
    return SampleCoverage(
        num_samples=len(samples),
        num_failed=len(failures),
        first_failure=failures[0] if failures else None,
        num_units=num_units,
        num_one_to_one=num_one_to_one,
        num_shared=num_shared,
        num_student_tokens=num_tokens,
    )


def _num_text(table: TokenBytes) -> int:
    return sum(spelled is not None for spelled in table.spelled)


def _examples(columns: list[int], table: TokenBytes, count: int) -> tuple[str, ...]:
    chosen = vocab_matching.unmatched(columns, table)[:count]
    return tuple(repr((table.spelled[token] or b"").decode(errors="backslashreplace")) for token in chosen)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "none"
