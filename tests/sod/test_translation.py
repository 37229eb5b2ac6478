"""What a student wrote, in the tokens and the template of a teacher with another tokenizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from sod.chat import ChatRenderer
from sod.chat_templates import TEMPLATES
from sod.errors import ConfigError, ModelError, TemplateError, TranslationError
from sod.packing import pack
from sod.testing import make_tiny_tokenizer
from sod.tokenization import tokenize_trajectory
from sod.translation import TokenizerPair, make_pair, translate_round
from sod.types import StopReason, Task
from sod_kernels import TokenBytes, Units, VocabMap
from tests.sod.conversations import OPENING, add, make_sides, rolled_out, tokenizer_of

SIDES = {
    "bytes, other merges": (("byte_level", "hermes"), ("digits", "plain")),
    "the other way": (("digits", "plain"), ("byte_level", "llama3")),
    "pieces for bytes": (("byte_level", "phi4"), ("sentencepiece_like", "gemma")),
    "bytes for pieces": (("sentencepiece_like", "llama3"), ("byte_level", "qwen3")),
    "the same": (("byte_level", "hermes"), ("byte_level", "hermes")),
}
WORDS = (
    "add 17 and 25",
    "你好 🙂",
    '{"a": 12}',
    "\n\n",
    " ",
    "def f(x):\n    return x",
    "naïve",
    "9" * 7,
    "<b>",
)
texts = st.lists(
    st.sampled_from(WORDS) | st.text(max_size=6).filter(lambda text: text.isprintable()), max_size=5
)
written = st.tuples(texts.map("".join).filter(bool), st.booleans(), texts.map("".join))


def segments(step_ids):
    """(turns, 2) spans of each turn in the response tokens of a sequence."""
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), step_ids[step_ids >= 0].bincount().cumsum(0)])
    return torch.stack([ends[:-1], ends[1:]], 1)


def sampled(pair, sequence):
    """Texts of the response tokens of a translated sequence, by turn."""
    steps = sequence.step_ids
    return [
        pair.teacher_tokenizer.decode(sequence.input_ids[steps == step].tolist())
        for step in steps[steps >= 0].unique().tolist()
    ]


@pytest.mark.parametrize("name", SIDES)
@settings(max_examples=12, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(turns=st.lists(written, min_size=1, max_size=4))
def test_units_tile_every_turn_of_any_conversation(name, turns):
    renderer, pair = make_sides(*SIDES[name])
    asked = [(text, is_cut, ({"role": "user", "content": answer},)) for text, is_cut, answer in turns]
    trajectory = rolled_out(pair, renderer, asked)
    made = pair.translate(trajectory)
    (sequence,) = made.sequences
    (own,) = tokenize_trajectory(trajectory)
    parts = segments(own.step_ids), segments(sequence.step_ids)
    is_whole = torch.tensor([not is_cut for _, is_cut, _ in turns])
    student, teacher = made.units.student_spans, made.units.teacher_spans
    chosen = is_whole[torch.searchsorted(parts[0][:, 1].contiguous(), student[:, 0].contiguous(), right=True)]
    Units(student[chosen], teacher[chosen]).check_tiles(parts[0][is_whole], parts[1][is_whole])
    # Every unit spells the same bytes on both sides, observations are in none.
    ids = own.input_ids[own.response_mask], sequence.input_ids[sequence.response_mask]
    for spans in zip(student.tolist(), teacher.tolist(), strict=True):
        spelled = [
            table.text(side[start:end].tolist())
            for table, side, (start, end) in zip(pair.tables, ids, spans, strict=True)
        ]
        # A space that a tokenizer puts before a text belongs to no text.
        assert spelled[0].lstrip() == spelled[1].lstrip()


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 17, "b": 25}}\n</tool_call>'


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("has_tools", [True, False])
def test_the_teacher_reads_the_conversation_as_its_own_template_writes_it(name, has_tools):
    renderer, pair = make_sides(*SIDES[name], tools=(add,) if has_tools else ())
    answer = {"role": "tool" if has_tools else "user", "content": "42, it said"}
    trajectory = rolled_out(pair, renderer, [(CALL, False, (answer,)), ("It is 42.", False, ())])
    (sequence,) = pair.translate(trajectory).sequences
    said = [{"role": "assistant", "content": text} for text in (CALL, "It is 42.")]
    conversation = [*OPENING, said[0], answer, said[1]]
    context, first = pair.teacher.conversation_turns(conversation)[0]
    ids = sequence.input_ids.tolist()
    assert tuple(ids[: len(context)]) == context
    assert tuple(ids[len(context) :][: len(first)]) == first
    end = pair.teacher_tokenizer.decode([pair.teacher.end_id])
    assert sampled(pair, sequence) == [CALL + end, "It is 42." + end]
    # The whole text is the template's, but for what would follow the last end.
    whole = pair.teacher_tokenizer.apply_chat_template(
        conversation,
        tools=[add.schema] if has_tools else None,
        chat_template=pair.teacher._template.source,
        tokenize=False,
    )
    read = pair.teacher.decode(ids).replace(" ", "")
    assert whole.replace(" ", "").startswith(read)
    assert sequence.step_ids.unique().tolist() == [-1, 0, 1]


def test_every_turn_of_its_own_sequence_has_its_own_prompt():
    renderer, pair = make_sides(*SIDES["bytes, other merges"])
    turns = [("one 12", False, ()), ("two 34", True, ()), ("three", False, ())]
    trajectory = rolled_out(pair, renderer, turns, segments=(0, 1, 2))
    made = pair.translate(trajectory)
    assert len(made.sequences) == 3
    for index, sequence in enumerate(made.sequences):
        prompt = pair.teacher.prompt_ids(trajectory.turns[index].messages)
        assert tuple(sequence.input_ids[: len(prompt)].tolist()) == prompt
        assert set(sequence.step_ids.tolist()) == {-1, index}


def test_a_turn_that_was_cut_off_is_not_taught_to_stop():
    renderer, pair = make_sides(*SIDES["bytes, other merges"])
    # Cut off within a character, and cut off although an end was appended.
    turns = [
        (spelling(pair, b"ok \xf0\x9f"), True, ()),
        ((*spelling(pair, b"ok"), renderer.end_id), True, ()),
    ]
    made = pair.translate(rolled_out(pair, renderer, turns))
    covered = torch.cat([torch.arange(a, b) for a, b in made.units.student_spans.tolist()]).tolist()
    assert covered == list(range(7))
    (sequence,) = made.sequences
    # The teacher's template closes the first turn, which is context there.
    assert sampled(pair, sequence)[0].startswith("ok")
    assert pair.teacher.end_id not in sequence.input_ids[sequence.step_ids == 0].tolist()


def test_control_tokens_are_replaced_by_their_partners():
    own, others = make_tiny_tokenizer(), make_tiny_tokenizer(vocab_size=300)
    for tokenizer, names in ((own, ("<|call|>", "<|done|>")), (others, ("[CALL]", "[/CALL]"))):
        tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    renderer = ChatRenderer(own, stop_tokens=("<|im_end|>", "<|done|>"))
    bridge = (("<|im_end|>", "<|im_end|>"), ("<|call|>", "[CALL]"), ("<|done|>", "[/CALL]"))
    pair = make_pair((own, others), renderer, bridge=bridge)
    call = (*own("go<|call|>add 12<|done|>")["input_ids"],)
    trajectory = rolled_out(
        pair, renderer, [(call, True, ({"role": "user", "content": "14"},)), ("14", False, ())]
    )
    turns = (replace(trajectory.turns[0], stop_reason=StopReason.STOP_TOKEN), trajectory.turns[1])
    made = pair.translate(replace(trajectory, turns=turns))
    (sequence,) = made.sequences
    assert sampled(pair, sequence) == ["go[CALL]add 12[/CALL]", "14<|im_end|>"]
    # The teacher's template ends the turn with its own end, which the student did not write.
    after = others.decode(sequence.input_ids.tolist()).split("[/CALL]")[1]
    assert after.startswith("<|im_end|>")
    made.units.check_tiles(
        *(
            segments(steps)
            for steps in (
                tokenize_trajectory(replace(trajectory, turns=turns))[0].step_ids,
                sequence.step_ids,
            )
        )
    )


def spelling(pair, data):
    """The student's ids of bytes that need not be a text."""
    return [pair.tables[0].ids_by_bytes()[bytes([byte])] for byte in data]


def test_bytes_that_are_no_character_become_the_teachers_byte_tokens():
    renderer, pair = make_sides(*SIDES["pieces for bytes"])
    spelled = b"a\xff b\xf0\x9f"
    trajectory = rolled_out(pair, renderer, [(spelling(pair, spelled), False, ())])
    made = pair.translate(trajectory)
    (sequence,) = made.sequences
    ids = sequence.input_ids[sequence.response_mask].tolist()
    assert pair.tables[1].text(ids).lstrip() == spelled
    assert ids[-1] == pair.teacher.end_id
    made.units.check_tiles(torch.tensor([[0, len(spelled) + 1]]), torch.tensor([[0, len(ids)]]))


def without_bytes(pair):
    """The same pair, but the teacher has no token for the byte 0xff."""
    table = pair.tables[1]
    spelled = tuple(None if each == b"\xff" else each for each in table.spelled)
    vocab_map = VocabMap.from_tokenizers(
        pair.tables[0], TokenBytes(spelled=spelled, names=table.names), bridge=(("<|im_end|>", "<|end|>"),)
    )
    return TokenizerPair(vocab_map, pair.student_tokenizer, pair.teacher_tokenizer, pair.teacher)


def test_a_turn_of_nothing_but_the_space_before_a_text_cannot_be_translated():
    renderer, pair = make_sides(*SIDES["bytes for pieces"])
    trajectory = rolled_out(pair, renderer, [(spelling(pair, b" "), True, ())])
    with pytest.raises(
        TranslationError, match="turn 0: the student wrote nothing but the space before a text"
    ):
        pair.translate(trajectory)


FAILURES = {
    "a byte that the teacher has not": (
        lambda pair: spelling(pair, b"a\xff b"),
        "wrote byte b'\\xff', which is no character, and the teacher has no token for it",
    ),
    "a control token without a partner": (
        lambda pair: [pair.student_tokenizer.convert_tokens_to_ids("<|im_start|>")],
        "a control token without a partner; name its partner in [algorithm] bridge",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_translated_is_dropped_and_counted_or_named(name):
    make, words = FAILURES[name]
    renderer, pair = make_sides(*SIDES["bytes, other merges"])
    pair = without_bytes(pair)
    observation = ({"role": "user", "content": "and?"},)
    good = rolled_out(pair, renderer, [("fine 12", False, observation), ("14", False, ())])
    bad = rolled_out(pair, renderer, [("fine 12", False, observation), (make(pair), False, ())])
    with pytest.raises(TranslationError, match=r"simct: trajectory 1 \(task 'task'\), turn 1: ") as caught:
        translate_round([good, bad], pair, align="minimal", may_drop=False)
    assert words in str(caught.value)
    assert 'misaligned = "drop"' in str(caught.value)
    made = translate_round([good, bad], pair, align="minimal", may_drop=True)
    assert [entry is None for entry in made.entries] == [False, True]
    assert made.problem.startswith(
        "1 trajectories were left out: simct: trajectory 1 (task 'task'), turn 1: "
    )
    alone = translate_round([good], pair, align="minimal", may_drop=True)
    assert alone.problem is None
    assert made.metrics == {**alone.metrics, "unit/dropped_trajectories": 1.0}


def test_a_text_that_the_teacher_changes_is_an_alignment_error_with_its_turn():
    own, others = make_tiny_tokenizer(), make_tiny_tokenizer()
    others.backend_tokenizer.normalizer = normalizers.Lowercase()
    renderer = ChatRenderer(own)
    pair = make_pair((own, others), renderer)
    trajectory = rolled_out(pair, renderer, [("fine", False, ()), ("Not fine", False, ())])
    with pytest.raises(TranslationError, match=r"^turn 1: align_units: segment 1, byte 0: the texts differ"):
        pair.translate(trajectory)


def test_a_prompt_whose_messages_nobody_kept_is_refused():
    renderer, pair = make_sides(*SIDES["the same"])
    trajectory = rolled_out(pair, renderer, [("fine", False, ())])
    turns = (replace(trajectory.turns[0], messages=()),)
    with pytest.raises(TranslationError, match="turn 0: the messages of its prompt were not kept"):
        pair.translate(replace(trajectory, turns=turns))


def test_tools_of_a_task_of_its_own_are_told_to_the_teacher():
    renderer, pair = make_sides(*SIDES["the same"], tools=(add,))
    trajectory = rolled_out(pair, renderer, [("fine", False, ())])
    other = {"type": "function", "function": {**add.schema["function"], "name": "subtract"}}
    decoded = [
        pair.teacher.decode(pair.translate(one).sequences[0].input_ids.tolist())
        for one in (trajectory, replace(trajectory, tools=(other,)))
    ]
    assert ['"subtract"' in text for text in decoded] == [False, True]


def test_rows_and_units_of_a_packed_batch_are_those_of_its_trajectories():
    renderer, pair = make_sides(*SIDES["bytes, other merges"])
    observation = ({"role": "user", "content": "and?"},)
    made = [
        rolled_out(pair, renderer, [(text, False, observation), (text[::-1] + " 1234", False, ())])
        for text in ("a 12 b", "longer text 5678 here", "x", "dropped")
    ]
    done = translate_round(made, pair, align="minimal", may_drop=True)
    done = replace(done, entries=(*done.entries[:3], None))
    sequences = [tokenize_trajectory(one) for one in made]
    batches = pack(sequences, range(4), max_tokens=250, pad_id=0, translated=done)
    assert sorted(index for batch in batches for index in batch.trajectories) == [0, 1, 2]
    assert len(batches) > 1
    for batch in batches:
        other = batch.counterpart
        assert other.batch.input_ids.numel() <= 250
        assert other.batch.step_turn.tolist() == batch.step_turn.tolist()
        spelled = []
        for rows, table, spans in (
            (batch, pair.tables[0], other.units.student_spans),
            (other.batch, pair.tables[1], other.units.teacher_spans),
        ):
            labels = rows.labels.tolist()
            spelled.append([table.text(labels[start:end]) for start, end in spans.tolist()])
            steps = rows.row_steps
            assert torch.equal(steps[spans[:, 0]], steps[spans[:, 1] - 1])
            assert int(spans.diff(dim=1).sum()) == len(labels)
        assert spelled[0] == spelled[1]
        assert batch.to(torch.device("cpu")).counterpart.batch.num_rows == other.batch.num_rows


def test_a_trajectory_without_a_translation_cannot_be_packed_by_mistake():
    renderer, pair = make_sides(*SIDES["the same"])
    made = [rolled_out(pair, renderer, [("a", False, ())])]
    done = replace(translate_round(made, pair, align="minimal", may_drop=True), entries=(None,))
    assert (
        pack([tokenize_trajectory(one) for one in made], [0], max_tokens=99, pad_id=0, translated=done) == []
    )


def test_metrics_count_units_and_tokens():
    renderer, pair = make_sides(*SIDES["the other way"])
    trajectory = rolled_out(
        pair, renderer, [("17", False, ({"role": "user", "content": "?"},)), ("25", True, ())]
    )
    metrics = translate_round([trajectory], pair, align="minimal", may_drop=False).metrics
    num_tokens = trajectory.num_sampled_tokens
    units = pair.translate(trajectory).units
    assert metrics["unit/one_to_one"] == pytest.approx(float(units.is_one_to_one().float().mean()))
    assert metrics["unit/per_step"] == len(units) / 2
    assert metrics["unit/aligned_tokens"] == 1.0
    assert metrics["unit/one_to_one_tokens"] == pytest.approx(int(units.is_one_to_one().sum()) / num_tokens)


def test_the_report_looks_at_the_messages_of_the_tasks():
    _, pair = make_sides(*SIDES["the other way"])
    report = pair.report([Task(task_id="a", messages=OPENING), Task(task_id="b", messages=())])
    assert report.coverage.num_samples == 2
    assert report.coverage.num_failed == 0
    assert report.num_shared > 256
    assert report.bridged == ("<|end|> = <|eot_id|>",)


def test_an_end_of_sequence_beside_the_end_of_a_turn_is_bridged_too():
    tokenizer = tokenizer_of("byte_level", "plain")
    renderer = ChatRenderer(tokenizer, stop_tokens=("<|im_end|>", "</s>"), chat_template=TEMPLATES["hermes"])
    teacher = tokenizer_of("digits", "plain")
    pair = make_pair((tokenizer, teacher), renderer, chat_template=TEMPLATES["plain"])
    names = [
        [table.names[token] for token in ids]
        for table, ids in zip(pair.tables, zip(*pair.vocab_map.bridge, strict=True), strict=True)
    ]
    assert names == [["<|im_end|>", "</s>"], ["<|end|>", "<|end|>"]]


LEAN = "{%- for message in messages -%}{{ message['content'] + '<|im_end|>' }}{%- endfor -%}"


def test_bad_pairs_are_refused_with_what_to_do():
    own = make_tiny_tokenizer()
    renderer = ChatRenderer(own)
    with pytest.raises(ConfigError, match=r"\[algorithm\] bridge: VocabMap: bridge names '<nope>'"):
        make_pair((own, own), renderer, bridge=(("<|im_end|>", "<nope>"),))
    with pytest.raises(ConfigError, match=r"may end a turn with '<\|im_end\|>', control tokens for which no"):
        make_pair((own, own), renderer, bridge=(("<|im_start|>", "<|im_start|>"),))
    with pytest.raises(TemplateError, match=r"^\[teacher\] ChatRenderer: "):
        make_pair((own, own), renderer, chat_template="{{ messages[-1]['content'] }}")
    opens = "{{- '<think>\\n' if add_generation_prompt else '' -}}"
    with pytest.raises(ConfigError, match="the teacher's template opens a thought before every turn"):
        make_pair((own, own), renderer, chat_template=LEAN + opens)
    with pytest.raises(ValueError, match="TokenizerPair: vocab_map knows no tokenizers"):
        TokenizerPair(VocabMap(torch.tensor([0]), torch.tensor([0])), own, own, renderer)


def test_a_tokenizer_whose_bytes_are_not_sure_is_refused():
    words = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words.decoder = decoders.WordPiece()
    other = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="[UNK]")
    own = make_tiny_tokenizer()
    with pytest.raises(
        ModelError, match="simct: token_bytes: the tokenizer's decoder is or contains WordPiece"
    ):
        make_pair((own, other), ChatRenderer(own))
