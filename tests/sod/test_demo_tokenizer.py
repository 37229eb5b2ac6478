"""The demo's tokenizer: names and digits are tokens, text round-trips, the template only appends."""

from __future__ import annotations

import json

import pytest

from sod.chat import ChatRenderer
from sod.demo.tokenizer import ledger_tokenizer, train_tokenizer
from sod.envs.ledger import FIELDS, ITEMS, ledger_question
from sod.envs.ledger_env import STOP_TOKENS
from sod.envs.ledger_expert import expert_turns


@pytest.fixture(scope="module")
def tokenizer():
    return ledger_tokenizer()


def _ids(tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def test_names_and_digits_are_the_same_tokens_everywhere(tokenizer) -> None:
    for name in (*ITEMS, *FIELDS):
        (token,) = _ids(tokenizer, name)
        for text in (f"the rival of {name}?", f'{{"item": "{name}"}}', f"error: no item {name}"):
            assert token in _ids(tokenizer, text)
    digits = [_ids(tokenizer, digit)[0] for digit in "0123456789"]
    assert _ids(tokenizer, "4096") == [digits[4], digits[0], digits[9], digits[6]]
    assert _ids(tokenizer, "print(12-7)")[-4:-1] == [digits[2], *_ids(tokenizer, "-"), digits[7]]


def test_a_call_is_short(tokenizer) -> None:
    # Nine tokens: two markers, tool, item, field and four pieces of merged boilerplate.
    call = '<tool_call>{"name": "lookup", "arguments": {"item": "lamp", "field": "price"}}</tool_call>'
    assert len(_ids(tokenizer, call)) == 9


@pytest.mark.parametrize(
    "text", ["Zürich 7 €?", '{"a": "b\\n"}', "  two  spaces ", "NameError: name 'q' is not"]
)
def test_any_text_comes_back(tokenizer, text: str) -> None:
    assert tokenizer.decode(_ids(tokenizer, text)) == text


def test_training_repeats_and_survives_saving(tokenizer, tmp_path) -> None:
    assert ledger_tokenizer().get_vocab() == tokenizer.get_vocab()
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    text = "<|im_start|>" + ledger_question(1, 1).text + "<|im_end|>"
    assert _ids(loaded, text) == _ids(tokenizer, text)
    assert loaded.chat_template == tokenizer.chat_template


def test_template_only_appends_and_the_renderer_gives_the_pieces(tokenizer) -> None:
    renderer = ChatRenderer(tokenizer, stop_tokens=STOP_TOKENS, observation_roles=("tool", "user"))
    question = ledger_question(2, 5)
    messages: list[dict] = [{"role": "user", "content": question.text}]
    ids = list(renderer.prompt_ids(messages))
    for turn in expert_turns(question):
        if "</tool_call>" not in turn.text:
            break
        sampled = _ids(tokenizer, turn.text)
        assert sampled[-1] in renderer.stop_ids
        answer = {"role": "tool", "content": "42"}
        ids += [*sampled, *renderer.observation_ids(sampled, [answer])]
        call = json.loads(turn.text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
            answer,
        ]
        assert ids == list(renderer.prompt_ids(messages))


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocab_size=300 leaves no single token for \w+.* more item names"):
        train_tokenizer(["What is the price of lamp?"], vocab_size=300)
