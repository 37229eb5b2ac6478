"""Units of two token sequences: minimal, tiling, the same from C++ and from the definition."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizer_pairs import (
    by_hand,
    byte_level,
    encode,
    mixed_texts,
    sentence_merges,
    sentence_pieces,
    table,
    worked_map,
)

from sod_kernels import AlignmentError, Units, VocabMap, align_units, token_bytes
from sod_kernels.native import loader

_REASON = loader.unavailable_reason("cpu")
needs_native = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))
BACKENDS = [pytest.param("native", marks=needs_native), "reference"]
PAIRS = {
    "two byte-level sizes": (lambda: byte_level(320), lambda: byte_level(900)),
    "digits split": (lambda: byte_level(900, splits_digits=True), lambda: byte_level(900)),
    "pieces with merges and byte-level": (sentence_merges, lambda: byte_level(900)),
    "byte-level and pieces": (lambda: byte_level(900), sentence_pieces),
    "pieces after a space and byte-level": (lambda: sentence_pieces(prepends=True), lambda: byte_level(320)),
}


def rows(units: Units) -> list[tuple[int, ...]]:
    return [(*a, *b) for a, b in zip(units.student_spans.tolist(), units.teacher_spans.tolist(), strict=True)]


def align(student, teacher, backend="reference", *, student_has=False, teacher_has=False, **options):
    """Units of two texts given token by token."""
    ids, others, vocab_map = by_hand(student, teacher, student_has=student_has, teacher_has=teacher_has)
    return rows(align_units(ids, others, vocab_map, backend=backend, **options))


@pytest.mark.parametrize("backend", BACKENDS)
class TestByHand:
    def test_worked_example(self, backend):
        units = align_units([0, 1, 2, 4], [2, 1, 0], worked_map(), backend=backend)
        assert rows(units) == [(0, 2, 0, 1), (2, 3, 1, 2), (3, 4, 2, 3)]
        assert units.is_one_to_one().tolist() == [False, True, True]

    def test_worked_example_with_roles_swapped(self, backend):
        swapped = VocabMap.from_tokenizers(worked_map().teacher, worked_map().student)
        units = align_units([2, 1, 0], [0, 1, 2, 4], swapped, backend=backend)
        assert rows(units) == [(0, 1, 0, 2), (1, 2, 2, 3), (2, 3, 3, 4)]

    def test_greedy_swallows_the_token_after_a_span(self, backend):
        units = align_units([0, 1, 2, 4], [2, 1, 0], worked_map(), align="greedy", backend=backend)
        assert rows(units) == [(0, 3, 0, 2), (3, 4, 2, 3)]

    def test_greedy_folds_the_end_into_a_last_span_and_drops_a_tail(self, backend):
        student, teacher = ["4", "2", "<e>"], ["42", "<e>"]
        assert align(student, teacher, backend, align="greedy") == [(0, 3, 0, 2)]
        assert align(student[:2], teacher[:1], backend, align="greedy") == []
        assert align(["a", *student[:2]], ["a", *teacher[:1]], backend, align="greedy") == [(0, 1, 0, 1)]

    def test_greedy_does_not_reach_across_segments(self, backend):
        student, teacher = ["4", "2", "4", "2", "x"], ["42", "42", "x"]
        segments = {"student_segments": [(0, 2), (2, 5)], "teacher_segments": [(0, 1), (1, 3)]}
        assert align(student, teacher, backend, align="greedy", **segments) == [(2, 5, 1, 3)]

    def test_borders_that_leapfrog_make_one_unit(self, backend):
        found = align(["a", "bc", "de", "f"], ["ab", "cd", "e", "f"], backend)
        assert found == [(0, 3, 0, 3), (3, 4, 3, 4)]

    def test_tokens_without_bytes_join_the_unit_before(self, backend):
        assert align(["", "a", "", "b", ""], ["a", "b"], backend) == [(0, 3, 0, 1), (3, 5, 1, 2)]
        assert align(["", "<e>"], ["<e>"], backend) == [(0, 2, 0, 1)]

    def test_nothing_against_nothing(self, backend):
        assert align([], [], backend) == []
        assert align([], ["<e>"], backend, truncated=True) == []
        assert align([], [], backend, student_segments=[], teacher_segments=[]) == []

    def test_a_space_that_the_tokenizer_put_there_is_not_text(self, backend):
        unit = [(0, 1, 0, 1)]
        assert align([" hi"], ["hi"], backend, student_has=True) == unit
        assert align(["hi"], [" hi"], backend, teacher_has=True) == unit
        assert align(["  hi"], [" hi"], backend, student_has=True) == unit
        assert align([" hi"], [" hi"], backend, student_has=True, teacher_has=True) == unit
        assert align([" ", "h", "i"], ["hi"], backend, student_has=True) == [(0, 3, 0, 1)]
        with pytest.raises(AlignmentError):
            align([" hi"], ["hi"], backend)

    def test_a_truncated_response_does_not_learn_to_stop(self, backend):
        student, teacher = ["a", "b"], ["a", "b", "<e>"]
        both = [(0, 1, 0, 1), (1, 2, 1, 2)]
        assert align(student, teacher, backend, truncated=True) == both
        assert align([*student, "<e>"], teacher, backend, truncated=True) == both
        assert align([*student, "<e>"], teacher, backend) == [*both, (2, 3, 2, 3)]
        # One text goes on: what lies beyond the last common border is in no unit.
        assert align(["a", "b"], ["a", "bc", "d"], backend, truncated=True) == [(0, 1, 0, 1)]
        # A control token without partner at the end does not matter then.
        assert align(["a", "<x>"], ["a"], backend, truncated=True) == [(0, 1, 0, 1)]

    def test_truncation_is_told_per_segment(self, backend):
        student, teacher = ["a", "<e>", "b", "<e>"], ["a", "<e>", "b", "<e>"]
        segments = {"student_segments": [(0, 2), (2, 4)], "teacher_segments": torch.tensor([[0, 2], [2, 4]])}
        found = align(student, teacher, backend, truncated=[False, True], **segments)
        assert found == [(0, 1, 0, 1), (1, 2, 1, 2), (2, 3, 2, 3)]
        with pytest.raises(AlignmentError):
            align(student, [*teacher[:3]], backend, student_segments=[(2, 4)], teacher_segments=[(2, 3)])

    def test_observations_between_segments_are_in_no_unit(self, backend):
        student = ["o", "b", "4", "2", "<e>", "obs", "erved", "4", "2", "+", "<e>"]
        teacher = ["42", "<e>", "other", "4", "2+", "<e>"]
        ids, others, vocab_map = by_hand(student, teacher)
        segments = {"student_segments": [(2, 5), (7, 11)], "teacher_segments": [(0, 2), (3, 6)]}
        units = align_units(ids, others, vocab_map, backend=backend, **segments)
        assert rows(units) == [(2, 4, 0, 1), (4, 5, 1, 2), (7, 8, 3, 4), (8, 10, 4, 5), (10, 11, 5, 6)]
        units.check_tiles(*map(torch.tensor, segments.values()))

    def test_a_bad_segment_is_named(self, backend):
        ids, others, vocab_map = by_hand(["a", "b"], ["a", "c"])
        halves = [(0, 1), (1, 2)]
        with pytest.raises(AlignmentError, match="segment 1, byte 0") as caught:
            align_units(
                ids, others, vocab_map, student_segments=halves, teacher_segments=halves, backend=backend
            )
        assert caught.value.segment == 1
        # The others can be aligned without it.
        align_units(
            ids, others, vocab_map, student_segments=halves[:1], teacher_segments=halves[:1], backend=backend
        )


@pytest.mark.parametrize("names", PAIRS.values(), ids=PAIRS)
def test_trained_tokenizers_tile_the_text(names):
    student, teacher = names[0](), names[1]()
    vocab_map = VocabMap.from_tokenizers(student, teacher)
    num_single = num_units = 0
    for text in mixed_texts(60, seed=4):
        text = text.replace("\u2581", "")
        if text.startswith(" "):
            # A tokenizer that puts a space before a text may leave one that is there alone.
            text = "x" + text
        ids = [*encode(student, text), vocab_map.student.eos_id]
        others = [*encode(teacher, text), vocab_map.teacher.eos_id]
        units = align_units(ids, others, vocab_map)
        units.check_tiles(torch.tensor([[0, len(ids)]]), torch.tensor([[0, len(others)]]))
        for a, b, c, d in rows(units)[1:]:
            assert vocab_map.student.text(ids[a:b]) == vocab_map.teacher.text(others[c:d])
        assert rows(units) == rows(align_units(ids, others, vocab_map, backend="reference"))
        num_units += len(units)
        num_single += int(units.is_one_to_one().sum())
    assert 0.2 < num_single / num_units < 1.0


def test_a_response_cut_inside_a_character_aligns_up_to_it():
    student, teacher = byte_level(320), byte_level(900)
    vocab_map = VocabMap.from_tokenizers(student, teacher)
    ids = encode(student, "和:计算🙂👩‍👩‍👧 42")
    whole = encode(teacher, "和:计算🙂👩‍👩‍👧 42")
    for end in range(len(ids) + 1):
        spelled = vocab_map.student.text(ids[:end])
        others = encode(teacher, spelled.decode(errors="ignore"))
        units = align_units(ids[:end], others, vocab_map, truncated=True)
        covered = vocab_map.student.text(ids[: rows(units)[-1][1]] if len(units) else [])
        # Less than a character and one token of the teacher may be left over.
        assert spelled.startswith(covered)
        assert len(spelled) - len(covered) <= 3 + max(len(each or b"") for each in vocab_map.teacher.spelled)
        align_units(ids[:end], whole, vocab_map, truncated=True)
    face = encode(student, "🙂")[:1]
    replaced = encode(teacher, vocab_map.student.text(face).decode(errors="replace"))
    with pytest.raises(
        AlignmentError, match=r"replacement character U\+FFFD.*Cut the incomplete character off"
    ):
        align_units(face, replaced, vocab_map, truncated=True)


# Every text over two letters has many cuttings into these; the last two are control tokens.
TOKENS = ["".join(letters) for size in range(4) for letters in itertools.product(" a", repeat=size)]
CONTROLS = ["<e>", "<f>"]
SMALL = VocabMap.from_tokenizers(
    table(*TOKENS, *CONTROLS, has_prefix_space=True),
    table(*TOKENS, *CONTROLS),
    bridge=[(name, name) for name in CONTROLS],
)
IDS = {token: number for number, token in enumerate([*TOKENS, *CONTROLS])}


def cut(text: str, chance: random.Random) -> list[str]:
    """A random cutting of a text into tokens, now and then with one that has no bytes."""
    tokens = []
    while text:
        size = chance.choice((1, 1, 2, 3)) if chance.random() > 0.05 else 0
        tokens.append(text[:size])
        text = text[size:]
    return tokens


def random_pair(chance: random.Random) -> tuple[list[str], list[str]]:
    """The same text on both sides, with control tokens; the student's may begin with a space more."""
    student, teacher = [], []
    for part in range(chance.randint(0, 2)):
        text = "".join(chance.choices(" a", k=chance.randint(0, 6)))
        extra = " " if part == 0 and chance.random() < 0.3 else ""
        ends = chance.choices([[], ["<e>"], ["<f>"]])[0]
        student += [*cut(extra + text, chance), *ends]
        teacher += [*cut(text, chance), *ends]
    return student, teacher


@needs_native
def test_native_finds_what_the_definition_says_in_100_000_random_pairs():
    chance = random.Random(5)
    flat, segments, truncated = ([], []), ([], []), []
    for _ in range(100_000):
        pair = random_pair(chance)
        is_truncated = chance.random() < 0.2
        if is_truncated:
            shorter = chance.randrange(2)
            pair[shorter][chance.randint(0, len(pair[shorter])) :] = []
        truncated.append(is_truncated)
        for tokens, ids, ranges in zip(pair, flat, segments, strict=True):
            ranges.append((len(ids), len(ids) + len(tokens)))
            ids += map(IDS.__getitem__, tokens)
    ranges = {"student_segments": torch.tensor(segments[0]), "teacher_segments": torch.tensor(segments[1])}
    native = align_units(*flat, SMALL, backend="native", truncated=truncated, **ranges)
    reference = align_units(*flat, SMALL, backend="reference", truncated=truncated, **ranges)
    assert len(native) > 100_000
    assert torch.equal(native.student_spans, reference.student_spans)
    assert torch.equal(native.teacher_spans, reference.teacher_spans)


@needs_native
def test_native_refuses_what_the_definition_refuses():
    chance = random.Random(6)
    num_refused = 0
    for _ in range(1500):
        student, teacher = random_pair(chance)
        if teacher:
            teacher[chance.randrange(len(teacher))] = chance.choice([*TOKENS, *CONTROLS])
        ids = [IDS[token] for token in student], [IDS[token] for token in teacher]
        found = []
        for backend in ("native", "reference"):
            try:
                found.append(rows(align_units(*ids, SMALL, backend=backend, truncated=len(ids[0]) % 2 == 0)))
            except AlignmentError as error:
                found.append(str(error))
        assert found[0] == found[1]
        num_refused += isinstance(found[0], str)
    assert 300 < num_refused < 1300


def released_walk(student: list[str], teacher: list[str]) -> list[tuple[int, ...]]:
    """Spans as the released code's rule gives them: a border only after equal tokens with equal histories."""
    i = j = 0
    begin, spans = (0, 0), []
    while i < len(student) and j < len(teacher):
        histories = "".join(student[:i]), "".join(teacher[:j])
        is_anchor = histories[0] == histories[1] and student[i] == teacher[j]
        i, j = i + (len(histories[0]) <= len(histories[1])), j + (len(histories[1]) <= len(histories[0]))
        if is_anchor:
            spans.append((begin[0], i, begin[1], j))
            begin = i, j
    return spans


def test_greedy_is_the_released_rule():
    chance = random.Random(7)
    for _ in range(1500):
        text = "".join(chance.choices(" a", k=chance.randint(0, 9)))
        student, teacher = ([token for token in cut(text, chance) if token] for _ in range(2))
        ends = ["<e>"] * chance.randrange(2)
        ids = [[IDS[token] for token in [*side, *ends]] for side in (student, teacher)]
        units = align_units(*ids, SMALL, align="greedy")
        assert rows(units) == released_walk([*student, *ends], [*teacher, *ends])


def pieces_of(text: bytes, cuts: set[int]) -> list[bytes]:
    borders = sorted({0, len(text), *(each for each in cuts if each < len(text))})
    return [text[a:b] for a, b in itertools.pairwise(borders)]


@given(text=st.binary(max_size=24), cuts=st.sets(st.integers(1, 23)), others=st.sets(st.integers(1, 23)))
def test_units_tile_and_no_finer_cut_is_whole_tokens(text, cuts, others):
    student, teacher = pieces_of(text, cuts), pieces_of(text, others)
    spelled = [dict.fromkeys(side) for side in (student, teacher)]
    maps = VocabMap.from_tokenizers(table(*spelled[0], b"shared"), table(*spelled[1], b"shared"), bridge=())
    ids = [[list(spelled[i]).index(token) for token in side] for i, side in enumerate((student, teacher))]
    units = align_units(*ids, maps)
    units.check_tiles(torch.tensor([[0, len(student)]]), torch.tensor([[0, len(teacher)]]))
    at = 0
    for a, b, c, d in rows(units):
        unit = b"".join(student[a:b])
        assert unit == b"".join(teacher[c:d])
        inner = {at + len(b"".join(student[a:k])) for k in range(a + 1, b)}
        assert not inner & {at + len(b"".join(teacher[c:k])) for k in range(c + 1, d)}
        at += len(unit)
    assert at == len(text)
    swapped = VocabMap.from_tokenizers(maps.teacher, maps.student, bridge=())
    turned = align_units(ids[1], ids[0], swapped)
    assert torch.equal(turned.student_spans, units.teacher_spans)
    assert torch.equal(turned.teacher_spans, units.student_spans)


def test_integer_tensors_of_any_width_are_taken():
    ids = torch.tensor([9, 0, 1, 2, 4], dtype=torch.int16)[1:]
    units = align_units(ids, torch.tensor([2, 9, 1, 9, 0, 9])[::2], worked_map())
    assert rows(units) == [(0, 2, 0, 1), (2, 3, 1, 2), (3, 4, 2, 3)]


def test_a_token_is_never_decoded_alone():
    # 256 one-byte tokens against whole characters: as strings these would all be U+FFFD.
    student = table(*(bytes([byte]) for byte in range(256)))
    teacher = table("計", "算", "🙂")
    vocab_map = VocabMap(torch.tensor([0]), torch.tensor([0]), student=student, teacher=teacher)
    units = align_units(list("計🙂算".encode()), [0, 2, 1], vocab_map)
    assert rows(units) == [(0, 3, 0, 1), (3, 7, 1, 2), (7, 10, 2, 3)]
    assert token_bytes(byte_level(320)).text(encode(byte_level(320), "計🙂")) == "計🙂".encode()


def dense_losses(units: Units, student_ids: list[int], teacher_ids: list[int], *, score: str) -> list[float]:
    """Reverse KL of each unit of the worked example, straight from the definition."""
    vocab_map = worked_map()
    student = [[2, 1, 0, -1, -2], [0, 3, 1, 2, -1], [0.5, -0.5, 2, 0, 1], [-1, 0, -1, 0, 3]]
    teacher = [[-2, 0, 2.5, 0.5, 1.5, -1], [1, 3, -1, 0, -0.5, 0.5], [4, 0, -2, -1, 0, 1]]
    losses = []
    for a, b, c, d in rows(units):
        sides = []
        for logits, ids, columns, start, end in (
            (student, student_ids, vocab_map.student_columns, a, b),
            (teacher, teacher_ids, vocab_map.teacher_columns, c, d),
        ):
            values = torch.tensor(logits, dtype=torch.float64)
            values = values if score == "logit" else values.log_softmax(-1)
            span = torch.stack([values[row, ids[row]] for row in range(start, end)]).mean()
            is_span = (b - a, d - c) != (1, 1)
            sides.append(torch.cat([values[start, columns], span[None][:is_span]]).log_softmax(-1))
        losses.append(float((sides[0].exp() * (sides[0] - sides[1])).sum()))
    return losses


def test_worked_example_losses_follow_from_map_and_units():
    ids = [0, 1, 2, 4], [2, 1, 0]
    minimal = align_units(*ids, worked_map())
    assert dense_losses(minimal, *ids, score="log_prob") == pytest.approx(
        [0.115838, 0.191470, 0.051222], abs=1e-6
    )
    assert dense_losses(minimal, *ids, score="logit") == pytest.approx(
        [0.029682, 0.191470, 0.051222], abs=1e-6
    )
    greedy = align_units(*ids, worked_map(), align="greedy")
    assert dense_losses(greedy, *ids, score="log_prob") == pytest.approx([0.153552, 0.051222], abs=1e-6)
    assert dense_losses(greedy, *ids, score="logit") == pytest.approx([0.096013, 0.051222], abs=1e-6)
