"""Every message of `align_units` and of `Units`."""

from __future__ import annotations

import pytest
import torch
from tokenizer_pairs import by_hand, table, worked_map

from sod_kernels import AlignmentError, BackendUnavailableError, Units, VocabMap, align_units
from sod_kernels.native import loader

WORKED = ([0, 1, 2, 4], [2, 1, 0])


def difference(student, teacher, **options) -> str:
    ids, others, vocab_map = by_hand(student, teacher)
    with pytest.raises(AlignmentError) as caught:
        align_units(ids, others, vocab_map, **options)
    return str(caught.value)


def test_texts_that_differ():
    message = difference(["ab", "cd"], ["a", "bc", "x"])
    assert message.startswith(
        "align_units: segment 0, byte 3: the texts differ: the student has b'cd' (id 1) at student_ids[1], "
        "the teacher has b'x' (id 2) at teacher_ids[2]. Give the ids of one and the same text"
    )
    assert "what TokenBytes.text(student_ids) spells" in message


def test_a_text_that_ends_too_soon():
    assert "the student's text has ended, the teacher has b'b' (id 1)" in difference(["a"], ["a", "b"])
    assert "at student_ids[1], the teacher's text has ended" in difference(["a", "b"], ["a"])


def test_positions_count_from_the_beginning_of_the_ids():
    segments = {"student_segments": [(2, 4)], "teacher_segments": [(1, 3)]}
    message = difference(["?", "?", "a", "b"], ["!", "a", "c"], **segments)
    assert "byte 1" in message
    assert "at student_ids[3], the teacher has b'c' (id 2) at teacher_ids[2]" in message


def test_control_tokens_without_partner():
    message = difference(["a", "<x>"], ["a", "<y>"])
    assert "the student has '<x>' (id 1) at student_ids[1]" in message
    assert "name its partner in bridge= of VocabMap.from_tokenizers, or leave it out" in message
    # Two of the same name that were not declared to be the same.
    vocab_map = VocabMap.from_tokenizers(table("a", "<e>"), table("a", "<e>"), bridge=())
    with pytest.raises(AlignmentError, match=r"The map bridges no control token '<e>'"):
        align_units([0, 1], [0, 1], vocab_map)


def test_a_control_token_against_text_and_against_another():
    message = difference(["a", "<e>"], ["a", "b", "<e>"])
    assert "the student has '<e>' (id 1) at student_ids[1], the teacher has b'b'" in message
    assert "the student has '<e>'" in difference(["<e>", "<f>"], ["<f>", "<e>"])


def test_ids_out_of_range():
    with pytest.raises(
        ValueError, match=r"align_units: student_ids holds 5 at \[0\]; wanted ids from 0 to 4"
    ):
        align_units([5], [0], worked_map())
    with pytest.raises(ValueError, match=r"teacher_ids holds -1 at \[1\]; wanted ids from 0 to 5"):
        align_units([0], [0, -1], worked_map())


def test_ids_that_are_no_ids():
    with pytest.raises(TypeError, match=r"student_ids has dtype torch\.float32; wanted one of int64"):
        align_units(torch.tensor([0.5]), [0], worked_map())
    with pytest.raises(TypeError, match="student_ids is list; wanted integers: a tensor or a list"):
        align_units([0.5], [0], worked_map())
    with pytest.raises(TypeError, match="student_ids is list; wanted integers"):
        align_units([1 << 70], [0], worked_map())
    with pytest.raises(TypeError, match="teacher_ids is list; wanted integers: a tensor or a list"):
        align_units([0], ["a"], worked_map())
    with pytest.raises(TypeError, match="student_ids is NoneType; wanted integers"):
        align_units(None, [0], worked_map())
    with pytest.raises(ValueError, match=r"student_ids has shape \(1, 1\); wanted one sequence of ids"):
        align_units(torch.zeros(1, 1, dtype=torch.int64), [0], worked_map())
    with pytest.raises(ValueError, match=r"teacher_ids is on meta; wanted cpu. Move it there first"):
        align_units([0], torch.zeros(1, dtype=torch.int64, device="meta"), worked_map())


def test_maps_that_do_not_know_their_tokens():
    with pytest.raises(TypeError, match=r"align_units: vocab_map is dict; wanted a VocabMap"):
        align_units([0], [0], {})
    bare = VocabMap(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"align_units: the VocabMap was made from columns alone.*from_tok"):
        align_units([0], [0], bare)


def test_options_that_are_none():
    with pytest.raises(ValueError, match=r"align='minimum'; wanted one of minimal, greedy\. Did you mean"):
        align_units(*WORKED, worked_map(), align="minimum")
    with pytest.raises(ValueError, match="backend='triton'; wanted one of auto, native, reference"):
        align_units(*WORKED, worked_map(), backend="triton")


def test_segments_that_are_none():
    def align(student, teacher):
        align_units(*WORKED, worked_map(), student_segments=student, teacher_segments=teacher)

    with pytest.raises(ValueError, match="teacher_segments is missing; wanted segments of both sides"):
        align([(0, 4)], None)
    with pytest.raises(ValueError, match="student_segments is missing"):
        align(None, [(0, 3)])
    with pytest.raises(
        ValueError, match="student_segments are 1 and teacher_segments 2; wanted the same turns"
    ):
        align([(0, 4)], [(0, 1), (1, 3)])
    with pytest.raises(ValueError, match=r"student_segments has shape \(2,\); wanted \(G, 2\)"):
        align([0, 4], [(0, 3)])
    with pytest.raises(
        ValueError, match=r"student_segments\[0\] is \[0, 5\); wanted a range from 0.* up to 4"
    ):
        align([(0, 5)], [(0, 3)])
    with pytest.raises(ValueError, match=r"teacher_segments\[1\] is \[1, 3\); wanted a range from 2, where"):
        align([(0, 2), (2, 4)], [(0, 2), (1, 3)])
    with pytest.raises(ValueError, match=r"teacher_segments\[0\] is \[2, 1\)"):
        align([(0, 4)], [(2, 1)])
    with pytest.raises(TypeError, match="student_segments is list; wanted integers"):
        align([(0, 1), (2,)], [(0, 3)])


def test_truncated_that_is_none():
    with pytest.raises(TypeError, match=r"truncated holds torch\.int64; wanted True or False"):
        align_units(*WORKED, worked_map(), truncated=1)
    with pytest.raises(ValueError, match=r"truncated has shape \(2,\); wanted one per segment, \(1,\)"):
        align_units(*WORKED, worked_map(), truncated=[True, False])


def test_a_missing_library_is_an_error_only_if_asked_for(monkeypatch):
    monkeypatch.setattr(loader, "unavailable_reason", lambda device_type: "It was not built.")
    with pytest.raises(BackendUnavailableError, match=r"backend='native' cannot run: It was not built\. Use"):
        align_units(*WORKED, worked_map(), backend="native")
    assert len(align_units(*WORKED, worked_map())) == 3


def units(student, teacher) -> Units:
    return Units(torch.tensor(student), torch.tensor(teacher))


def test_spans_that_are_none():
    with pytest.raises(TypeError, match="student_spans is list; wanted a tensor"):
        Units([[0, 1]], torch.tensor([[0, 1]]))
    with pytest.raises(TypeError, match=r"teacher_spans has dtype torch\.float32"):
        units([[0, 1]], [[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"student_spans has shape \(2,\); wanted \(U, 2\)"):
        units([0, 1], [0, 1])
    with pytest.raises(ValueError, match=r"teacher_spans has shape \(2, 2\); wanted \(1, 2\)"):
        units([[0, 1]], [[0, 1], [1, 2]])
    with pytest.raises(ValueError, match=r"student_spans\[1\] is \[1, 1\); wanted at least one row"):
        units([[0, 1], [1, 1]], [[0, 1], [1, 2]])
    with pytest.raises(
        ValueError, match=r"teacher_spans\[1\] is \[1, 3\); .*at or after row 2, where the unit"
    ):
        units([[0, 1], [1, 2]], [[0, 2], [1, 3]])
    with pytest.raises(ValueError, match=r"student_spans\[0\] is \[-1, 1\)"):
        units([[-1, 1]], [[0, 1]])


def test_units_that_do_not_tile():
    def check(student, teacher, *segments):
        units(student, teacher).check_tiles(*map(torch.tensor, segments))

    whole = [[0, 4]], [[0, 3]]
    check([[0, 2], [2, 4]], [[0, 1], [1, 3]], *whole)
    gap = (
        r"Units\.check_tiles: segment 0 is in units up to student token 2 and teacher token 1, but then comes"
    )
    with pytest.raises(
        ValueError, match=gap + r" a unit at 3 and 1; wanted units without a gap up to 4 and 3"
    ):
        check([[0, 2], [3, 4]], [[0, 1], [1, 3]], *whole)
    with pytest.raises(ValueError, match=gap + " a unit at 2 and 2"):
        check([[0, 2], [2, 4]], [[0, 1], [2, 3]], *whole)
    with pytest.raises(ValueError, match=gap + " no unit"):
        check([[0, 2]], [[0, 1]], *whole)
    with pytest.raises(
        ValueError, match="a unit ends at student token 4 and teacher token 3, beyond segment 0"
    ):
        check([[0, 4]], [[0, 3]], [[0, 2], [2, 4]], [[0, 1], [1, 3]])
    with pytest.raises(ValueError, match="a unit at student token 2 and teacher token 1 is in no segment"):
        check([[0, 2], [2, 4]], [[0, 1], [1, 3]], [[0, 2]], [[0, 1]])
