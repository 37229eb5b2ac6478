"""Token sequences into padded microbatches under a token budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from sod.errors import DataError
from sod.tokenization import TokenSequence
from sod.translation import TranslatedRound, Translation
from sod_kernels import Units, VocabMap


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Right-padded sequences, and the rows at which their response tokens are predicted.

    A *row* is a position whose logits predict a response token: N rows for N response tokens, in the order
    of the flattened batch. Scores are made for rows only, never for prompts, observations or padding.

    Attributes:
        input_ids: (B, T) int64.
        attention_mask: (B, T) bool, False at padding.
        step_ids: (B, T) int64, steps numbered over the batch, -1 outside responses.
        loss_mask: (B, T) bool, the response tokens that are trained on.
        log_probs: (B, T) float32, log-probs at sampling time, nats; 0 where nothing was sampled.
        step_trajectory: (S,) int64, position in `trajectories` of each step.
        step_turn: (S,) int64, turn of each step within its trajectory.
        step_errors: (S,) int64, error observations of the trajectory before each step.
        trajectories: Index of each trajectory in what was packed.
        rows: (N,) int64, flat index b * T + t of the position before each response token.
        advantages: (S,) float32, advantage of each step; None where nobody gave any.
        told: The same trajectories as the teacher reads them, the same N rows at other places; None where it
            reads what the student read.
        route: Which of several teachers scores it; "" for one teacher.
        counterpart: The same as a teacher with another tokenizer reads it; None where the ids are one's own.
    """

    input_ids: Tensor
    attention_mask: Tensor
    step_ids: Tensor
    loss_mask: Tensor
    log_probs: Tensor
    step_trajectory: Tensor
    step_turn: Tensor
    step_errors: Tensor
    trajectories: tuple[int, ...]
    rows: Tensor
    advantages: Tensor | None = None
    told: Batch | None = None
    route: str = ""
    counterpart: Counterpart | None = None

    @property
    def labels(self) -> Tensor:
        """(N,) int64: the token that each row predicts."""
        return self.input_ids.flatten()[self.rows + 1]

    @property
    def row_steps(self) -> Tensor:
        """(N,) int64: the step of the token that each row predicts."""
        return self.step_ids.flatten()[self.rows + 1]

    @property
    def row_loss_mask(self) -> Tensor:
        """(N,) bool: whether the token that each row predicts is trained on."""
        return self.loss_mask.flatten()[self.rows + 1]

    @property
    def row_log_probs(self) -> Tensor:
        """(N,) float32: the log-prob at sampling time of the token that each row predicts."""
        return self.log_probs.flatten()[self.rows + 1]

    @property
    def row_advantages(self) -> Tensor:
        """(N,) float32: the advantage of the step that each row belongs to.

        Raises:
            DataError: If the batch was packed without advantages.
        """
        if self.advantages is None:
            raise DataError("row_advantages: the batch was packed without advantages; pass them to pack().")
        return self.advantages[self.row_steps]

    @property
    def num_steps(self) -> int:
        """S."""
        return self.step_turn.numel()

    @property
    def num_rows(self) -> int:
        """N."""
        return self.rows.numel()

    def to(self, device: torch.device) -> Batch:
        """Copy every tensor to a device."""
        values: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        movable = {
            name: value for name, value in values.items() if isinstance(value, Tensor | Batch | Counterpart)
        }
        return Batch(**{**values, **{name: value.to(device) for name, value in movable.items()}})

    @property
    def of_teacher(self) -> Batch:
        """The same trajectories as the teacher reads them."""
        if self.counterpart is not None:
            return self.counterpart.batch
        return self if self.told is None else self.told


@dataclass(frozen=True, kw_only=True)
class Counterpart:
    """The trajectories of a batch in the tokens of a teacher with another tokenizer.

    Attributes:
        batch: M rows; steps are numbered as in the student's batch.
        units: Spans of rows of both batches that spell the same bytes.
        vocab_map: Columns that both vocabularies share.
    """

    batch: Batch
    units: Units
    vocab_map: VocabMap

    def to(self, device: torch.device) -> Counterpart:
        """Copy every tensor to a device."""
        return Counterpart(
            batch=self.batch.to(device), units=self.units.to(device), vocab_map=self.vocab_map.to(device)
        )


def num_trained_tokens(trajectories: Sequence[Sequence[TokenSequence]]) -> int:
    """Count the tokens that the loss of these trajectories runs over."""
    return sum(int(sequence.loss_mask.sum()) for sequences in trajectories for sequence in sequences)


def pack(
    trajectories: Sequence[Sequence[TokenSequence]],
    indices: Sequence[int],
    *,
    max_tokens: int,
    pad_id: int,
    advantages: Sequence[float | Sequence[float]] | None = None,
    told: Sequence[Sequence[TokenSequence]] | None = None,
    routes: Sequence[str] | None = None,
    translated: TranslatedRound | None = None,
) -> list[Batch]:
    """Group trajectories of similar length into microbatches.

    The sequences of one trajectory stay together, because its step weights are made from all its steps.
    A trajectory without a response token is left out, and one that was not translated.

    Args:
        trajectories: The token sequences of each trajectory of the round.
        indices: Which of them to pack.
        max_tokens: Padded tokens that a microbatch may have. A trajectory that is longer by itself gets a
            microbatch of its own.
        pad_id: Token id put behind the end of a sequence.
        advantages: Advantage of each trajectory of the round, or of each of its turns; None where the
            algorithm reads none.
        told: The token sequences of each trajectory as the teacher reads them; None where it reads the same.
        routes: Name of the teacher of each trajectory of the round, one for all of a microbatch; None where
            there is one teacher.
        translated: The trajectories in the teacher's tokens, where those are not the student's; a microbatch
            keeps to `max_tokens` on both sides.

    Returns:
        Microbatches, longest first within a route; the same input gives the same batches.

    Raises:
        DataError: If student and teacher would not read the same responses.
    """
    names = [""] * len(trajectories) if routes is None else routes
    batches = []
    for group in _groups(trajectories, indices, names, translated, max_tokens=max_tokens):
        batch = replace(_pad([trajectories[i] for i in group], tuple(group), pad_id), route=names[group[0]])
        if advantages is not None:
            batch = replace(batch, advantages=_step_advantages(batch, advantages))
        if told is not None:
            other = _pad([told[i] for i in group], tuple(group), pad_id)
            batch = replace(batch, told=_same_rows(replace(other, route=batch.route), batch))
        if translated is not None:
            batch = replace(batch, counterpart=_counterpart(batch, translated))
        batches.append(batch)
    return batches


def _groups(
    trajectories: Sequence[Sequence[TokenSequence]],
    indices: Sequence[int],
    names: Sequence[str],
    translated: TranslatedRound | None,
    *,
    max_tokens: int,
) -> list[list[int]]:
    """Which trajectories share a microbatch."""

    def width_of(index: int) -> int:
        other = () if translated is None else _entry(translated, index).sequences
        return max(sequence.input_ids.numel() for sequence in (*trajectories[index], *other))

    chosen = [i for i in indices if any(bool(s.response_mask.any()) for s in trajectories[i])]
    if translated is not None:
        chosen = [i for i in chosen if translated.entries[i] is not None]
    chosen.sort(key=lambda i: (names[i], -width_of(i), i))
    groups: list[list[int]] = []
    num_rows, width = 0, 0
    for i in chosen:
        added = len(trajectories[i])
        if groups and names[groups[-1][0]] == names[i] and (num_rows + added) * width <= max_tokens:
            groups[-1].append(i)
            num_rows += added
        else:
            groups.append([i])
            num_rows, width = added, width_of(i)
    return groups


def _step_advantages(batch: Batch, advantages: Sequence[float | Sequence[float]]) -> Tensor:
    of_steps = []
    for place, turn in zip(batch.step_trajectory.tolist(), batch.step_turn.tolist(), strict=True):
        own = advantages[batch.trajectories[place]]
        of_steps.append(own[turn] if isinstance(own, Sequence) else own)
    return torch.tensor(of_steps, dtype=torch.float32)


def _same_rows(told: Batch, batch: Batch) -> Batch:
    is_same = torch.equal(told.labels, batch.labels) and torch.equal(told.row_steps, batch.row_steps)
    if not is_same:
        raise DataError(
            f"pack: trajectories {batch.trajectories} have other responses as the teacher reads them; wanted "
            "the same tokens in the same turns behind other prompts"
        )
    return told


def _entry(translated: TranslatedRound, index: int) -> Translation:
    entry = translated.entries[index]
    if entry is None:
        raise DataError(f"pack: trajectory {index} was not translated; leave it out.")
    return entry


def _counterpart(batch: Batch, translated: TranslatedRound) -> Counterpart:
    entries = [_entry(translated, index) for index in batch.trajectories]
    other = _pad([entry.sequences for entry in entries], batch.trajectories, translated.pad_id)
    spans = []
    for side, rows in enumerate((batch, other)):
        # The rows of a trajectory lie together, in the order of its turns.
        counts = torch.bincount(rows.step_trajectory[rows.row_steps], minlength=len(entries))
        starts = (counts.cumsum(0) - counts).tolist()
        each = [(entry.units.student_spans, entry.units.teacher_spans)[side] for entry in entries]
        spans.append(torch.cat([one + start for one, start in zip(each, starts, strict=True)]))
    return Counterpart(batch=other, units=Units(*spans), vocab_map=translated.vocab_map)


def _turns(sequence: TokenSequence) -> list[int]:
    return sorted(set(sequence.step_ids[sequence.response_mask].tolist()))


def _pad(group: Sequence[Sequence[TokenSequence]], indices: tuple[int, ...], pad_id: int) -> Batch:
    flat = [(place, sequence) for place, sequences in enumerate(group) for sequence in sequences]
    shape = (len(flat), max(sequence.input_ids.numel() for _, sequence in flat))
    input_ids = torch.full(shape, pad_id, dtype=torch.int64)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    step_ids = torch.full(shape, -1, dtype=torch.int64)
    loss_mask = torch.zeros(shape, dtype=torch.bool)
    log_probs = torch.zeros(shape, dtype=torch.float32)
    numbers: dict[tuple[int, int], int] = {}
    for place, sequence in flat:
        for turn in _turns(sequence):
            numbers.setdefault((place, turn), len(numbers))
    for row, (place, sequence) in enumerate(flat):
        length = sequence.input_ids.numel()
        input_ids[row, :length] = sequence.input_ids
        attention_mask[row, :length] = True
        loss_mask[row, :length] = sequence.loss_mask
        log_probs[row, :length] = sequence.log_probs
        for turn in _turns(sequence):
            step_ids[row, :length][sequence.step_ids == turn] = numbers[place, turn]
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        step_ids=step_ids,
        loss_mask=loss_mask,
        log_probs=log_probs,
        step_trajectory=torch.tensor([place for place, _ in numbers], dtype=torch.int64),
        step_turn=torch.tensor([turn for _, turn in numbers], dtype=torch.int64),
        step_errors=torch.tensor(
            [group[place][0].errors_before[turn] for place, turn in numbers], dtype=torch.int64
        ),
        trajectories=indices,
        rows=(step_ids.flatten() >= 0).nonzero().flatten() - 1,
    )
