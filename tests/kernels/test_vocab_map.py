"""What tokens spell, which of them are paired, and how a map is kept."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizer_pairs import (
    EOS,
    byte_level,
    encode,
    mixed_texts,
    sentence_merges,
    sentence_pieces,
    table,
    worked_map,
)
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sod_kernels import TokenBytes, Units, VocabMap, token_bytes, vocab_report

TEXTS = [*mixed_texts(120, seed=3), "", " ", "  x", "\u2581", "<tool_call>{}</tool_call>", "é▁", "\x00\x7f"]


@pytest.mark.parametrize("vocab_size", [320, 900])
def test_byte_level_tokens_spell_the_text(vocab_size):
    tokenizer = byte_level(vocab_size)
    spelled = token_bytes(tokenizer)
    for text in [*TEXTS, "<0x41>"]:
        assert spelled.text(encode(tokenizer, text)) == text.encode()


def test_every_byte_has_a_byte_level_token():
    spelled = token_bytes(byte_level(320))
    assert {bytes([byte]) for byte in range(256)} <= set(spelled.spelled)


@pytest.mark.parametrize("make", [sentence_pieces, sentence_merges])
def test_sentence_pieces_spell_the_text(make):
    tokenizer = make()
    spelled = token_bytes(tokenizer)
    for text in TEXTS:
        assert spelled.text(encode(tokenizer, text)) == text.replace("\u2581", " ").encode()
    assert not spelled.has_prefix_space
    assert len(spelled.fallback_ids) == 256


def test_a_tokenizer_that_prepends_a_space_says_so():
    tokenizer = sentence_pieces(prepends=True)
    spelled = token_bytes(tokenizer)
    assert spelled.has_prefix_space
    assert spelled.text(encode(tokenizer, "sum of")) == b" sum of"
    described = json.loads(byte_level(320).backend_tokenizer.to_str())
    described["pre_tokenizer"] = {
        "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True,
    }  # fmt: skip
    assert token_bytes(Tokenizer.from_str(json.dumps(described))).has_prefix_space
    described["normalizer"] = {"type": "Prepend", "prepend": "\u2581"}
    described["pre_tokenizer"] = None
    assert token_bytes(Tokenizer.from_str(json.dumps(described))).has_prefix_space


def test_control_tokens_have_names_and_no_bytes():
    tokenizer = byte_level(320)
    spelled = token_bytes(tokenizer)
    assert spelled.names == {0: EOS, 1: "<|pad320|>"}
    assert spelled.eos_id == 0
    assert spelled.spelled[0] is None
    assert spelled.text([0, 1]) == b""
    assert b"<tool_call>" in spelled.spelled
    assert token_bytes(sentence_pieces()).names == {0: "<unk>", 1: "</s>"}


def test_a_bare_tokenizer_has_bytes_and_no_end():
    tokenizer = byte_level(320)
    bare = token_bytes(tokenizer.backend_tokenizer)
    assert bare.spelled == token_bytes(tokenizer).spelled
    assert bare.eos_id is None


def test_a_hole_in_the_numbering_is_no_token():
    spelled = table("a", "<eos>", None)
    assert spelled.describe(2) == "'unused' (id 2)"
    assert spelled.describe(1) == "'<eos>' (id 1)"
    assert spelled.describe(0) == "b'a' (id 0)"


def test_runs_of_spaces_that_were_added_are_spaces():
    described = json.loads(sentence_pieces().backend_tokenizer.to_str())
    described["model"]["vocab"].append(["\u2581\u2581\u2581", -5.0])
    size = len(described["model"]["vocab"])
    entry = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    described["added_tokens"] += [
        {"id": size - 1, "content": "\u2581\u2581\u2581", **entry},
        {"id": size, "content": "\u2581new", **entry},
    ]
    spelled = token_bytes(Tokenizer.from_str(json.dumps(described)))
    assert spelled.spelled[size - 1] == b"   "
    assert spelled.spelled[size] == "\u2581new".encode()


def test_columns_spell_the_same_and_are_paired_once():
    student, teacher = token_bytes(byte_level(900)), token_bytes(sentence_pieces())
    vocab_map = VocabMap.from_tokenizers(student, teacher)
    pairs = list(zip(vocab_map.student_columns.tolist(), vocab_map.teacher_columns.tolist(), strict=True))
    assert len({a for a, _ in pairs}) == len({b for _, b in pairs}) == len(pairs) == vocab_map.num_shared
    assert [a for a, _ in pairs] == sorted(a for a, _ in pairs)
    assert (student.eos_id, teacher.eos_id) in pairs
    assert all(
        student.spelled[a] == teacher.spelled[b]
        for a, b in pairs
        if (a, b) != (student.eos_id, teacher.eos_id)
    )
    # Nothing that both spell is missing.
    both = (set(student.spelled) & set(teacher.spelled)) - {None, b""}
    assert len(pairs) == len(both) + 1
    # Single bytes and line ends, which string matching of raw pieces would miss.
    assert {b"\n", b"\xe8", b"\t", b" "} <= {student.spelled[a] for a, _ in pairs}


def test_identical_tokenizers_pair_every_text_token_with_itself():
    vocab_map = VocabMap.from_tokenizers(byte_level(320), byte_level(320))
    assert torch.equal(vocab_map.student_columns, vocab_map.teacher_columns)
    assert vocab_map.num_shared == len(token_bytes(byte_level(320))) - 1


def test_the_order_of_the_vocabulary_does_not_matter():
    class Reversed:
        def __init__(self, inner):
            self.inner = inner
            self.backend_tokenizer, self.eos_token_id = inner.backend_tokenizer, inner.eos_token_id

        def get_vocab(self):
            return dict(sorted(self.inner.get_vocab().items(), key=lambda item: item[1], reverse=True))

    one = VocabMap.from_tokenizers(byte_level(900), sentence_pieces())
    other = VocabMap.from_tokenizers(Reversed(byte_level(900)), Reversed(sentence_pieces()))
    assert torch.equal(one.student_columns, other.student_columns)
    assert torch.equal(one.teacher_columns, other.teacher_columns)
    assert one.student.fingerprint == other.student.fingerprint


def test_worked_example_columns():
    vocab_map = worked_map()
    assert vocab_map.student_columns.tolist() == [0, 1, 2, 4]
    assert vocab_map.teacher_columns.tolist() == [4, 3, 1, 0]


def test_of_equal_tokens_the_smallest_id_is_paired_and_fallback_bytes_come_last():
    student = table("<eos>", b"A", b"B", b"A", b"C", fallback_ids=frozenset({1}))
    teacher = table("<eos>", b"A", b"B", b"B", b"C", fallback_ids=frozenset({4}))
    vocab_map = VocabMap.from_tokenizers(student, teacher)
    assert vocab_map.student_columns.tolist() == [0, 2, 3, 4]
    assert vocab_map.teacher_columns.tolist() == [0, 2, 1, 4]


def test_bridge_gives_a_column_to_the_first_pair_and_a_meaning_to_all():
    student = table("a", "<stop>", "<end>", "<pad>")
    teacher = table("a", "<eot>", "<eos>", "<pad>")
    bridge = [("<stop>", "<eot>"), ("<end>", "<eot>"), ("<stop>", "<eos>")]
    vocab_map = VocabMap.from_tokenizers(student, teacher, bridge=bridge)
    assert vocab_map.student_columns.tolist() == [0, 1]
    assert vocab_map.teacher_columns.tolist() == [0, 1]
    assert vocab_map.bridge == ((1, 1), (2, 1), (1, 2))
    ours, theirs = (each.tolist() for each in vocab_map.symbols)
    assert ours[0] == theirs[0] == -1
    assert ours[1] == ours[2] == theirs[1] == theirs[2] >= 0
    # Equal names alone mean nothing.
    assert ours[3] == theirs[3] == -2


def test_chains_of_pairs_mean_the_same():
    names = [f"<{letter}>" for letter in "abcd"]
    bridge = [("<a>", "<a>"), ("<b>", "<b>"), ("<a>", "<b>"), ("<c>", "<c>")]
    vocab_map = VocabMap.from_tokenizers(table("x", *names), table("x", *names), bridge=bridge)
    ours, theirs = (each.tolist() for each in vocab_map.symbols)
    assert len({ours[1], ours[2], theirs[1], theirs[2]}) == 1
    assert ours[3] == theirs[3] != ours[1]
    assert ours[4] == -2


def test_without_bridge_control_tokens_stay_apart():
    vocab_map = VocabMap.from_tokenizers(table("a", "<eos>"), table("a", "<eos>"), bridge=())
    assert vocab_map.student_columns.tolist() == [0]
    assert vocab_map.symbols[0].tolist() == [-1, -2]


def test_saved_map_comes_back(tmp_path):
    vocab_map = VocabMap.from_tokenizers(byte_level(320), sentence_pieces())
    vocab_map.save(tmp_path / "map.json")
    again = VocabMap.load(tmp_path / "map.json", byte_level(320), sentence_pieces())
    assert torch.equal(again.student_columns, vocab_map.student_columns)
    assert torch.equal(again.teacher_columns, vocab_map.teacher_columns)
    assert again.bridge == vocab_map.bridge
    assert torch.equal(again.symbols[1], vocab_map.symbols[1])


def test_a_saved_map_is_refused_for_other_tokenizers(tmp_path):
    VocabMap.from_tokenizers(byte_level(320), sentence_pieces()).save(tmp_path / "map.json")
    with pytest.raises(ValueError, match=r"map\.json was made from another student tokenizer.*make the map"):
        VocabMap.load(tmp_path / "map.json", byte_level(900), sentence_pieces())
    with pytest.raises(ValueError, match="another teacher tokenizer"):
        VocabMap.load(tmp_path / "map.json", byte_level(320), sentence_pieces(prepends=True))


@pytest.mark.parametrize("text", ["no json", "[]", '{"format": "other"}'])
def test_a_file_that_is_no_map_is_refused(tmp_path, text):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(ValueError, match=r"VocabMap\.load: .*is no map that VocabMap\.save wrote"):
        VocabMap.load(tmp_path / "map.json", table("a"), table("a"))


def test_fingerprints_tell_vocabularies_apart():
    tables = [
        table("a", "b"),
        table("ab", ""),
        table("a", "<b>"),
        table("a", "<c>"),
        table("a", "b", has_prefix_space=True),
        table("a", "b", fallback_ids=frozenset({1})),
    ]
    assert len({each.fingerprint for each in tables}) == len(tables)


def test_report_of_something_else_is_refused():
    with pytest.raises(TypeError, match="vocab_report: vocab_map is str; wanted a VocabMap"):
        vocab_report("qwen")


def test_report_counts_and_names_what_does_not_match():
    report = vocab_report(worked_map())
    assert (report.num_student_tokens, report.num_teacher_tokens, report.num_shared) == (4, 5, 3)
    assert report.bridged == ("<eos> = <eos>",)
    assert report.student_examples == ("'7'",)
    assert report.teacher_examples == ("'42'", "'x'")
    assert report.coverage is None
    assert "3 (75.0 % of the student's 4, 60.0 % of the teacher's 5)" in str(report)


def test_report_covers_samples():
    vocab_map = worked_map()
    samples = [([0, 1, 2, 4], [2, 1, 0]), ([2], [1]), ([0], [5])]
    coverage = vocab_report(vocab_map, samples, num_examples=1).coverage
    assert (coverage.num_samples, coverage.num_failed) == (3, 1)
    assert "the texts differ" in coverage.first_failure
    assert (coverage.num_units, coverage.num_one_to_one, coverage.num_shared) == (4, 3, 3)
    assert coverage.num_student_tokens == 5
    text = str(vocab_report(vocab_map, samples))
    assert "on 3 samples: 60.0 % of 5 student tokens are in 1:1 units" in text
    assert "first that did not: align_units" in text


def test_report_tells_one_to_one_units_without_a_column():
    # Two student tokens spell the same; only the first has a column.
    vocab_map = VocabMap.from_tokenizers(table("a", "b", "a", "<eos>"), table("a", "b", "<eos>"))
    coverage = vocab_report(vocab_map, [([2, 1], [0, 1])]).coverage
    assert (coverage.num_one_to_one, coverage.num_shared) == (2, 1)


def test_an_empty_report_divides_by_nothing():
    lone = VocabMap.from_tokenizers(table("<eos>"), table("<eos>"))
    assert "none of the student's 0" in str(vocab_report(lone, [([], [])]))


def test_maps_and_units_move_together():
    vocab_map = worked_map().to("meta")
    assert vocab_map.student_columns.device.type == vocab_map.teacher_columns.device.type == "meta"
    assert len(vocab_map.student) == 5
    units = Units(torch.tensor([[0, 1]]), torch.tensor([[0, 2]])).to("meta")
    assert units.teacher_spans.device.type == "meta"


def wordpiece():
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(["the sum of the sums"], trainer=trainer)
    return tokenizer


def test_tokenizers_whose_bytes_are_not_sure_are_refused():
    tokenizer = wordpiece()
    with pytest.raises(ValueError, match=r"token_bytes: .*WordPiece.*not sure.*build TokenBytes"):
        token_bytes(tokenizer)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    with pytest.raises(ValueError, match="nothing that says"):
        token_bytes(tokenizer)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("\u2581", " ")])
    with pytest.raises(ValueError, match="both ByteLevel and a mark for spaces"):
        token_bytes(tokenizer)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Metaspace(), decoders.Strip(content=" ", left=0, right=1)]
    )
    with pytest.raises(ValueError, match="Strip"):
        token_bytes(tokenizer)


def test_metaspace_decoder_is_understood():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("\u2581a", -1.0), ("<0x41>", -2.0)], unk_id=0))
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    spelled = token_bytes(tokenizer)
    assert spelled.spelled == (None, b" a", b"<0x41>")
    assert spelled.names == {0: "<unk>"}


def test_objects_that_describe_nothing_are_refused():
    with pytest.raises(TypeError, match=r"token_bytes: tokenizer is dict, .*wanted a fast tokenizer"):
        token_bytes({"a": 0})


def test_bridges_to_nowhere_are_refused():
    student, teacher = table("a", "<stop>"), table("a", "<eos>")
    with pytest.raises(
        ValueError, match=r"bridge is None, and the student's tokenizer names no end.*bridge="
    ):
        VocabMap.from_tokenizers(student, teacher)
    with pytest.raises(ValueError, match="the teacher's tokenizer names no end"):
        VocabMap.from_tokenizers(teacher, student)
    with pytest.raises(
        ValueError, match=r"names 'a', which is no control token of the student; those are '<st"
    ):
        VocabMap.from_tokenizers(student, teacher, bridge=[("a", "<eos>")])
    many = table("a", *(f"<{number}>" for number in range(10)))
    with pytest.raises(ValueError, match=r"control token of the teacher; those are '<0>'.* and 2 more"):
        VocabMap.from_tokenizers(student, many, bridge=[("<stop>", "<x>")])
    with pytest.raises(ValueError, match="those are none"):
        VocabMap.from_tokenizers(table("a"), teacher, bridge=[("<x>", "<eos>")])


def test_tokens_that_contradict_themselves_are_refused():
    with pytest.raises(ValueError, match="TokenBytes: names has '<x>' for id 0; wanted"):
        TokenBytes(spelled=(b"a",), names={0: "<x>"})
    with pytest.raises(ValueError, match="names has '<x>' for id 1"):
        TokenBytes(spelled=(b"a",), names={1: "<x>"})
    with pytest.raises(ValueError, match="eos_id=0, which is no control token"):
        TokenBytes(spelled=(b"a",), eos_id=0)
    with pytest.raises(ValueError, match=r"TokenBytes\.text: ids holds -1 at 1; wanted ids from 0 to 0"):
        TokenBytes(spelled=(b"a",)).text([0, -1])


def test_wrong_columns_are_refused():
    one = torch.tensor([0])
    with pytest.raises(TypeError, match="student_columns is list; wanted a tensor"):
        VocabMap([0], one)
    with pytest.raises(TypeError, match=r"teacher_columns has dtype torch\.int32"):
        VocabMap(one, one.int())
    with pytest.raises(
        ValueError, match=r"student_columns has shape \(0,\); wanted \(C,\) with at least one"
    ):
        VocabMap(one[:0], one[:0])
    with pytest.raises(ValueError, match=r"teacher_columns has shape \(2,\); wanted \(1,\)"):
        VocabMap(one, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="teacher_columns holds 3 twice"):
        VocabMap(torch.tensor([0, 1, 2]), torch.tensor([3, 1, 3]))
    with pytest.raises(ValueError, match="student_columns holds -1; wanted token ids"):
        VocabMap(torch.tensor([-1]), one)
    with pytest.raises(ValueError, match="got student or teacher without the other"):
        VocabMap(one, one, student=table("a"))
    with pytest.raises(ValueError, match="teacher_columns holds 1; wanted ids below 1"):
        VocabMap(one, torch.tensor([1]), student=table("a"), teacher=table("a"))
    with pytest.raises(ValueError, match="bridge holds 0 for the teacher, which is no control token"):
        VocabMap(one, one, student=table("<a>"), teacher=table("a"), bridge=((0, 0),))


def test_a_map_of_columns_alone_says_what_it_lacks(tmp_path):
    bare = VocabMap(torch.tensor([0]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"VocabMap\.save: the VocabMap was made from columns alone"):
        bare.save(tmp_path / "map.json")
    with pytest.raises(ValueError, match=r"VocabMap\.symbols: .*from_tokenizers"):
        _ = bare.symbols
    with pytest.raises(ValueError, match=r"vocab_report: .*columns alone"):
        vocab_report(bare)
    with pytest.raises(ValueError, match="vocab_report: num_examples=-1; wanted at least 0"):
        vocab_report(worked_map(), num_examples=-1)
