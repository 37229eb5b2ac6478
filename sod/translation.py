"""Trajectories in the tokens of a teacher with another tokenizer.

The teacher reads the conversation in its own chat template. What the student wrote stays the same text: the
bytes of the sampled ids, cut into the teacher's tokens, with control tokens replaced by those that the bridge
says mean the same. Each turn is aligned on its own, so observations are in no unit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from sod.chat import ChatRenderer
from sod.chat_templates import NamedTemplate
from sod.errors import ConfigError, ModelError, TemplateError, TranslationError
from sod.tokenization import TokenSequence, tokenize_trajectory
from sod.types import StopReason, Task, Trajectory, Turn
from sod_kernels import (
    AlignmentError,
    TokenBytes,
    Units,
    VocabMap,
    VocabReport,
    align_units,
    token_bytes,
    vocab_report,
)

_NUM_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class Translation:
    """One trajectory as the teacher reads it.

    Attributes:
        sequences: Its segments in the teacher's ids; steps are numbered as the student's.
        units: Spans of response tokens that spell the same bytes, counted over the trajectory on each side.
    """

    sequences: tuple[TokenSequence, ...]
    units: Units


@dataclass(frozen=True, kw_only=True)
class TranslatedRound:
    """All trajectories of a round.

    Attributes:
        entries: One per trajectory, None where it could not be aligned.
        vocab_map: Columns that both vocabularies share.
        pad_id: The teacher's token id of padding.
        problem: How many those are, and why the first of them could not be aligned; None if all could.
        metrics: Flat numbers by name.
    """

    entries: tuple[Translation | None, ...]
    vocab_map: VocabMap
    pad_id: int
    problem: str | None
    metrics: dict[str, float]


class TokenizerPair:
    """A student and a teacher with tokenizers of their own.

    Attributes:
        vocab_map: Columns that both vocabularies share.
        tables: What the tokens of student and teacher spell.
        student_tokenizer: The student's.
        teacher_tokenizer: The teacher's.
        teacher: Renders in the teacher's template.
    """

    vocab_map: VocabMap
    tables: tuple[TokenBytes, TokenBytes]
    student_tokenizer: PreTrainedTokenizerBase
    teacher_tokenizer: PreTrainedTokenizerBase
    teacher: ChatRenderer

    def __init__(
        self,
        vocab_map: VocabMap,
        student_tokenizer: PreTrainedTokenizerBase,
        teacher_tokenizer: PreTrainedTokenizerBase,
        teacher: ChatRenderer,
    ) -> None:
        """Take what belongs together.

        Args:
            vocab_map: Map of the two tokenizers.
            student_tokenizer: The student's tokenizer.
            teacher_tokenizer: The teacher's.
            teacher: Its renderer, which stops at the partners of the student's stop tokens.

        Raises:
            ValueError: If the map knows no tokenizers.
        """
        if vocab_map.student is None or vocab_map.teacher is None:
            raise ValueError(
                "TokenizerPair: vocab_map knows no tokenizers; make it with VocabMap.from_tokenizers."
            )
        self.vocab_map, self.tables = vocab_map, (vocab_map.student, vocab_map.teacher)
        self.student_tokenizer, self.teacher_tokenizer = student_tokenizer, teacher_tokenizer
        self.teacher = teacher
        self._by_bytes = self.tables[1].ids_by_bytes()
        self._partners: dict[int, int] = {}
        for student_id, teacher_id in vocab_map.bridge:
            self._partners.setdefault(student_id, teacher_id)

    def translate(self, trajectory: Trajectory, *, align: str = "minimal") -> Translation:
        """Render a trajectory for the teacher, and align what the student wrote.

        Args:
            trajectory: Sampled by the student, its messages kept.
            align: "minimal" or "greedy", as in `sod_kernels.align_units`.

        Returns:
            The teacher's sequences, and the units.

        Raises:
            TranslationError: Naming the turn that cannot be written in the teacher's tokens or aligned.
        """
        turns: list[Turn] = []
        for index, turn in enumerate(trajectory.turns):
            if index not in trajectory.segments:
                context = self.teacher.observation_ids(turns[-1].sampled_ids, turn.messages)
            elif turn.messages:
                context = self.teacher.prompt_ids(turn.messages, trajectory.tools)
            else:
                raise TranslationError(
                    f"turn {index}: the messages of its prompt were not kept, so the teacher cannot read "
                    "them in its own template; roll the task out again"
                )
            written = self._written(index, turn)
            turns.append(replace(turn, context_ids=context, sampled_ids=written, sampled_log_probs=()))
        units = self._align(trajectory.turns, turns, align)
        return Translation(
            sequences=tokenize_trajectory(replace(trajectory, turns=tuple(turns))), units=units
        )

    def report(self, tasks: Sequence[Task]) -> VocabReport:
        """Tell what the tokenizers share, and how much of the texts of a run's tasks is in 1:1 units.

        Args:
            tasks: Of these the messages of the first 64 are looked at.

        Returns:
            The report.
        """
        texts = (str(message["content"]) for task in tasks[:_NUM_SAMPLES] for message in task.messages)
        both = (self.student_tokenizer, self.teacher_tokenizer)
        samples = [[_text_ids(tokenizer, text) for tokenizer in both] for text in texts if text]
        return vocab_report(self.vocab_map, [(student, teacher) for student, teacher in samples])

    def _written(self, index: int, turn: Turn) -> tuple[int, ...]:
        """What the student wrote in a turn, in the teacher's ids."""
        student = self.tables[0]
        result: list[int] = []
        run = b""
        for place, token in enumerate(turn.sampled_ids):
            spelled = student.spelled[token]
            if spelled is not None:
                # The space that a tokenizer puts before a text is not in the text; the aligner knows of it.
                run += spelled.removeprefix(b" ") if student.has_prefix_space and place == 0 else spelled
                continue
            if token not in self._partners:
                raise TranslationError(
                    f"turn {index}: the student wrote {student.describe(token)}, a control token without a "
                    "partner; name its partner in [algorithm] bridge"
                )
            result += [*self._encode_bytes(index, run), self._partners[token]]
            run = b""
        result += self._encode_bytes(index, run)
        if not result:
            raise TranslationError(f"turn {index}: the student wrote nothing but the space before a text")
        return tuple(result)

    def _encode_bytes(self, index: int, spelled: bytes) -> list[int]:
        """Text as the teacher tokenises it; bytes that are no character as its tokens of one byte."""
        ids: list[int] = []
        while spelled:
            end, after = len(spelled), len(spelled)
            try:
                text = spelled.decode()
            except UnicodeDecodeError as error:
                end, after = error.start, error.end
                text = spelled[:end].decode()
            ids += _text_ids(self.teacher_tokenizer, text)
            for place in range(end, after):
                byte = spelled[place : place + 1]
                if byte not in self._by_bytes:
                    raise TranslationError(
                        f"turn {index}: the student wrote byte {byte!r}, which is no character, and the "
                        "teacher has no token for it"
                    )
                ids.append(self._by_bytes[byte])
            spelled = spelled[after:]
        return ids

    def _align(self, student: Sequence[Turn], teacher: Sequence[Turn], align: str) -> Units:
        sides = [[turn.sampled_ids for turn in turns] for turns in (student, teacher)]
        ids = [[token for written in side for token in written] for side in sides]
        try:
            return align_units(
                ids[0],
                ids[1],
                self.vocab_map,
                student_segments=_bounds(sides[0]),
                teacher_segments=_bounds(sides[1]),
                truncated=[turn.stop_reason is StopReason.LENGTH for turn in student],
                align=align,
            )
        except AlignmentError as error:
            raise TranslationError(f"turn {error.segment}: {error}") from error


def make_pair(
    tokenizers: tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase],
    student: ChatRenderer,
    *,
    bridge: Sequence[tuple[str, str]] = (),
    chat_template: str | NamedTemplate | None = None,
    enable_thinking: bool | None = None,
) -> TokenizerPair:
    """Find out what two tokenizers share, and how the teacher reads a conversation of the student.

    Args:
        tokenizers: The student's and the teacher's.
        student: The student's renderer, whose tools and format of calls the teacher is given.
        bridge: Names of control tokens that mean the same, student first; none pairs the two tokens with
            which the templates end a turn, and with the teacher's an end-of-sequence token of the student.
        chat_template: Used instead of the teacher's own.
        enable_thinking: Passed to the teacher's template unless None.

    Returns:
        The pair.

    Raises:
        ModelError: If the bytes of a tokenizer's tokens are not sure, or nothing is shared.
        ConfigError: If a name of the bridge is that of no control token, a stop token of the student has no
            partner, or one template opens a thought and the other does not.
        TemplateError: If the teacher's template only reads conversations that it may rewrite.
    """
    try:
        tables = token_bytes(tokenizers[0]), token_bytes(tokenizers[1])
    except (TypeError, ValueError) as error:
        raise ModelError(f"simct: {error}") from error
    stops = {tables[0].names[token] for token in student.stop_ids if token in tables[0].names}
    if bridge:
        # A name that is wrong shows here, before the teacher's template is asked to stop there.
        vocab_map = _map(tables, bridge, stops)
    named = dict(reversed(bridge))
    teacher = _teacher_renderer(
        tokenizers[1],
        student,
        stop_tokens=[named[stop] for stop in sorted(stops & named.keys())],
        chat_template=chat_template,
        enable_thinking=enable_thinking,
    )
    if not bridge:
        vocab_map = _map(tables, _end_pairs(tables, tokenizers[0], student, teacher), stops)
    return TokenizerPair(vocab_map, *tokenizers, teacher)


def _map(
    tables: tuple[TokenBytes, TokenBytes], pairs: Sequence[tuple[str, str]], stops: Collection[str]
) -> VocabMap:
    missing = sorted(set(stops) - {name for name, _ in pairs})
    if missing:
        raise ConfigError(
            f"[algorithm] bridge: the student may end a turn with {', '.join(map(repr, missing))}, control "
            "tokens for which no partner is named; add it for each as "
            f'"{missing[0]} = NAME", the name of what the teacher writes there'
        )
    try:
        return VocabMap.from_tokenizers(*tables, bridge=pairs)
    except ValueError as error:
        raise ConfigError(f"[algorithm] bridge: {error}") from error


def _teacher_renderer(
    tokenizer: PreTrainedTokenizerBase, student: ChatRenderer, **options: Any
) -> ChatRenderer:
    try:
        teacher = ChatRenderer(tokenizer, tools=student.tools, call_format=student.call_format, **options)
    except TemplateError as error:
        raise TemplateError(f"[teacher] {error} For the teacher these are settings of [teacher].") from error
    if teacher.starts_in_thought != student.starts_in_thought:
        opener = "teacher" if teacher.starts_in_thought else "student"
        raise ConfigError(
            f"[teacher] enable_thinking: the {opener}'s template opens a thought before every turn and the "
            "other does not, so the same text would mean something else; set it alike for both"
        )
    return teacher


def _end_pairs(
    tables: tuple[TokenBytes, TokenBytes],
    tokenizer: PreTrainedTokenizerBase,
    student: ChatRenderer,
    teacher: ChatRenderer,
) -> tuple[tuple[str, str], ...]:
    """The two ends of a turn, and the student's end of a sequence where it stops there too."""
    end = tables[1].names.get(teacher.end_id)
    own = [student.end_id, *(token for token in student.stop_ids if token == tokenizer.eos_token_id)]
    names = [tables[0].names[token] for token in dict.fromkeys(own) if token in tables[0].names]
    return tuple((name, end) for name in names if end is not None)


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text; what looks like a control token in it is text too."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
        "input_ids"
    ]
    return ids


def translate_round(
    trajectories: Sequence[Trajectory], pair: TokenizerPair, *, align: str, may_drop: bool
) -> TranslatedRound:
    """Translate the trajectories of a round.

    Args:
        trajectories: What the student sampled.
        pair: The tokenizers.
        align: As in `TokenizerPair.translate`.
        may_drop: Whether a trajectory that cannot be aligned is left out, and counted.

    Returns:
        The translations.

    Raises:
        TranslationError: Naming trajectory and turn, unless `may_drop`.
    """
    entries: list[Translation | None] = []
    problem = None
    for index, trajectory in enumerate(trajectories):
        try:
            entries.append(pair.translate(trajectory, align=align))
        except TranslationError as error:
            where = f"simct: trajectory {index} (task {trajectory.task_id!r}), {error}"
            if not may_drop:
                raise TranslationError(
                    f'{where}. Set [algorithm] misaligned = "drop" to leave such trajectories out.'
                ) from error
            problem = problem or where
            entries.append(None)
    return TranslatedRound(
        entries=tuple(entries),
        vocab_map=pair.vocab_map,
        pad_id=pair.teacher.pad_id,
        problem=None if problem is None else f"{entries.count(None)} trajectories were left out: {problem}",
        metrics=_metrics(trajectories, entries),
    )


def _metrics(trajectories: Sequence[Trajectory], entries: Sequence[Translation | None]) -> dict[str, float]:
    kept = [(one, entry) for one, entry in zip(trajectories, entries, strict=True) if entry is not None]
    num_units = sum(len(entry.units) for _, entry in kept)
    num_single = sum(int(entry.units.is_one_to_one().sum()) for _, entry in kept)
    num_tokens = sum(one.num_sampled_tokens for one, _ in kept)
    num_in_units = sum(int(entry.units.student_spans.diff(dim=1).sum()) for _, entry in kept)
    num_steps = sum(len(one.turns) for one, _ in kept)

    return {
        "unit/one_to_one": num_single / max(1, num_units),
        "unit/one_to_one_tokens": num_single / max(1, num_tokens),
        "unit/aligned_tokens": num_in_units / max(1, num_tokens),
        "unit/per_step": num_units / max(1, num_steps),
        "unit/dropped_trajectories": float(len(entries) - len(kept)),
    }


def _bounds(written: Iterable[Sequence[int]]) -> list[tuple[int, int]]:
    bounds, start = [], 0
    for ids in written:
        bounds.append((start, start + len(ids)))
        start += len(ids)
    return bounds
