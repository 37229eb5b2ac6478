"""What two tokenizers share: paired columns of their vocabularies, and units that spell the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sod_kernels import vocab_matching
from sod_kernels._checks import units as _checks
from sod_kernels.token_bytes import TokenBytes
from sod_kernels.tokenizer_bytes import token_bytes


@dataclass(frozen=True, eq=False)
class VocabMap:
    """Columns of the two vocabularies that mean the same token, one to one.

    Column `student_columns[c]` of the student's logits and `teacher_columns[c]` of the teacher's are the
    shared column c. Their order means nothing; `from_tokenizers` sorts them by the student's.

    Attributes:
        student_columns: (C,) int64, distinct.
        teacher_columns: (C,) int64, distinct, on the same device.
        student: What the student's tokens spell; `align_units` needs it, the losses do not.
        teacher: The teacher's, given exactly if the student's is.
        bridge: Pairs of ids of control tokens, student and teacher, that mean the same.
    """

    student_columns: Tensor
    teacher_columns: Tensor
    student: TokenBytes | None = field(default=None, kw_only=True)
    teacher: TokenBytes | None = field(default=None, kw_only=True)
    bridge: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        _checks.check_columns("VocabMap", self.student_columns, self.teacher_columns)
        _checks.check_map("VocabMap", self)

    @classmethod
    def from_tokenizers(
        cls, student: Any, teacher: Any, *, bridge: Iterable[tuple[str, str]] | None = None
    ) -> VocabMap:
        """Pair the tokens of two tokenizers: text by its bytes, control tokens as declared.

        Where several tokens of one side spell the same bytes, the smallest id is paired, a byte-fallback
        token only where there is no other.

        Args:
            student: A fast tokenizer of transformers, a `tokenizers.Tokenizer`, or `TokenBytes`.
            teacher: The same.
            bridge: Names of control tokens that mean the same, student first, such as
                [("<|im_end|>", "<|eot_id|>")]. The first pair of a token shares a column; further pairs with
                the same token only let the two align. None for the two end-of-sequence tokens.

        Returns:
            The map, in the same order in every process.

        Raises:
            TypeError: If a tokenizer cannot describe itself.
            ValueError: If the bytes of a tokenizer's tokens are not sure, a name of the bridge is that of no
                control token, or nothing is shared.
        """
        tables = _table(student), _table(teacher)
        ids = vocab_matching.bridge_ids(*tables, bridge)
        return cls(*vocab_matching.match(*tables, ids), student=tables[0], teacher=tables[1], bridge=ids)

    @classmethod
    def load(cls, path: str | Path, student: Any, teacher: Any) -> VocabMap:
        """Read a map that `save` wrote, for the tokenizers it was made from and for no others.

        Args:
            path: File.
            student: The student's tokenizer or `TokenBytes`.
            teacher: The teacher's.

        Returns:
            The map.

        Raises:
            ValueError: If the file is no such map, or belongs to other tokenizers.
        """
        tables = _table(student), _table(teacher)
        record = _checks.check_record(path, Path(path).read_text(), [table.fingerprint for table in tables])
        return cls(
            torch.tensor(record["student_columns"], dtype=torch.int64),
            torch.tensor(record["teacher_columns"], dtype=torch.int64),
            student=tables[0],
            teacher=tables[1],
            bridge=tuple((token, other) for token, other in record["bridge"]),
        )

    def save(self, path: str | Path) -> None:
        """Write the map as JSON, with the fingerprints of both tokenizers.

        Args:
            path: File to write.

        Raises:
            ValueError: If the map does not know its tokenizers.
        """
        student, teacher = _checks.check_has_tables("VocabMap.save", self)
        record = {
            "format": _checks.MAP_FORMAT,
            "student": student.fingerprint,
            "teacher": teacher.fingerprint,
            "bridge": self.bridge,
            "student_columns": self.student_columns.tolist(),
            "teacher_columns": self.teacher_columns.tolist(),
        }
        Path(path).write_text(json.dumps(record) + "\n")

    @property
    def num_shared(self) -> int:
        """Number of shared columns, C."""
        return self.student_columns.shape[0]

    def to(self, device: torch.device | str) -> VocabMap:
        """Copy the columns to a device.

        Args:
            device: Where to.

        Returns:
            The map there.
        """
        columns = self.student_columns.to(device), self.teacher_columns.to(device)
        return VocabMap(*columns, student=self.student, teacher=self.teacher, bridge=self.bridge)

    @cached_property
    def symbols(self) -> tuple[Tensor, Tensor]:
        """Per id of each side, int32: -1 text, from 0 control tokens by what they mean, -2 no partner."""
        tables = _checks.check_has_tables("VocabMap.symbols", self)
        return vocab_matching.symbols(*tables, self.bridge)


@dataclass(frozen=True, eq=False)
class Units:
    """Spans of tokens on both sides that spell the same bytes, in order.

    Unit u is the student's labels [start, end) = `student_spans[u]` and the teacher's `teacher_spans[u]`.
    Tokens between two spans are in no unit.

    Attributes:
        student_spans: (U, 2) int64, ascending, disjoint, none empty.
        teacher_spans: (U, 2) int64, likewise, on the same device.
    """

    student_spans: Tensor
    teacher_spans: Tensor

    def __post_init__(self) -> None:
        _checks.check_spans("Units", self.student_spans, self.teacher_spans)

    def __len__(self) -> int:
        return self.student_spans.shape[0]

    def to(self, device: torch.device | str) -> Units:
        """Copy the spans to a device.

        Args:
            device: Where to.

        Returns:
            The units there.
        """
        return Units(self.student_spans.to(device), self.teacher_spans.to(device))

    def is_one_to_one(self) -> Tensor:
        """Tell which units have one token on each side.

        Returns:
            (U,) bool.
        """
        lengths = torch.stack([self.student_spans, self.teacher_spans]).diff(dim=-1)
        return (lengths == 1).all(0).squeeze(-1)

    def check_tiles(self, student_segments: Tensor, teacher_segments: Tensor) -> None:
        """Make sure that the units fill segments without a gap, each unit in one segment on both sides.

        Args:
            student_segments: (G, 2) int64 of [start, end), ascending and disjoint, on the CPU.
            teacher_segments: (G, 2) int64, likewise.

        Raises:
            ValueError: Naming the first token in no unit, or the first unit across a border of segments.
        """
        _checks.check_tiling("Units.check_tiles", self, student_segments, teacher_segments)


def _table(tokenizer: Any) -> TokenBytes:
    return tokenizer if isinstance(tokenizer, TokenBytes) else token_bytes(tokenizer)
