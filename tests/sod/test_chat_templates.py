"""The token layout of every family, and what a template asks of its tokenizer."""

from __future__ import annotations

from typing import get_args

import pytest

from sod.chat import ChatRenderer
from sod.chat_templates import TEMPLATES, TemplateName
from sod.errors import TemplateError
from sod.testing import make_tiny_tokenizer
from sod.types import ToolCall
from tests.sod.trained_tokenizers import KINDS, trained_tokenizer

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": " What is 1+2? "}
CALLS = [{"function": {"name": "add", "arguments": {"a": 1, "b": 2}}}] * 2
CALLING = {"role": "assistant", "content": "", "tool_calls": CALLS}
RESULTS = [{"role": "tool", "content": '3 "units"'}, {"role": "tool", "content": "3"}]
ANSWER = {"role": "assistant", "content": "It is 3."}
CONVERSATION = [SYSTEM, USER, CALLING, *RESULTS, ANSWER, {"role": "user", "content": "Sure?"}]

HERMES_CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
JSON_CALL = '{"name": "add", "parameters": {"a": 1, "b": 2}}'
RESPONSES = '<tool_response>\n3 "units"\n</tool_response>\n<tool_response>\n3\n</tool_response>'
CHATML = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n What is 1+2? <|im_end|>\n"
    f"<|im_start|>assistant\n{HERMES_CALL}\n{HERMES_CALL}<|im_end|>\n"
    f"<|im_start|>user\n{RESPONSES}<|im_end|>\n<|im_start|>assistant\nIt is 3.<|im_end|>\n"
    "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
)
LAYOUTS = {
    "hermes": CHATML,
    "qwen2.5": CHATML,
    "qwen3": CHATML,
    "qwen3-strip": CHATML,
    "plain": (
        "system:\nBe brief.\n\nuser:\n What is 1+2? \n\n"
        f"assistant:\n{HERMES_CALL}\n{HERMES_CALL}</s>\n\n"
        'tool:\n3 "units"\n\ntool:\n3\n\nassistant:\nIt is 3.</s>\n\nuser:\nSure?\n\nassistant:\n'
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is 1+2?<|eot_id|>"
        f"<|start_header_id|>assistant<|end_header_id|>\n\n{JSON_CALL}; {JSON_CALL}<|eot_id|>"
        '<|start_header_id|>ipython<|end_header_id|>\n\n"3 \\"units\\""<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"3"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt is 3.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nSure?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "gemma": (
        "<bos><start_of_turn>user\nBe brief.\n\nWhat is 1+2?<end_of_turn>\n"
        f"<start_of_turn>model\n{JSON_CALL}; {JSON_CALL}<end_of_turn>\n"
        f"<start_of_turn>user\n{RESPONSES}<end_of_turn>\n<start_of_turn>model\nIt is 3.<end_of_turn>\n"
        "<start_of_turn>user\nSure?<end_of_turn>\n<start_of_turn>model\n"
    ),
    "phi4": (
        "<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|> What is 1+2? <|im_end|>"
        f"<|im_start|>assistant<|im_sep|>{HERMES_CALL}\n{HERMES_CALL}<|im_end|>"
        f"<|im_start|>user<|im_sep|>{RESPONSES}\n<|im_end|><|im_start|>assistant<|im_sep|>It is 3.<|im_end|>"
        "<|im_start|>user<|im_sep|>Sure?<|im_end|><|im_start|>assistant<|im_sep|>"
    ),
}


def render(name, messages, **options):
    tokenizer = trained_tokenizer("byte_level", name)
    return tokenizer.apply_chat_template(
        messages, chat_template=TEMPLATES[name].text, tokenize=False, add_generation_prompt=True, **options
    )


def test_every_name_has_a_layout_here():
    assert set(TEMPLATES) == set(LAYOUTS) == set(get_args(TemplateName))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_layout_of_the_family(name):
    assert render(name, CONVERSATION) == LAYOUTS[name]


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_are_described_once_before_the_question(name):
    tool = {"type": "function", "function": {"name": "add", "description": "Adds."}}
    for opening in ([SYSTEM, USER], [USER]):
        text = render(name, opening, tools=[tool, tool])
        assert text.count('"description": "Adds."') == 2
        assert text.index("Adds.") < text.index("What is 1+2?")
        assert ("Be brief." in text) == (SYSTEM in opening)
    assert "Adds." not in render(name, [USER])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_template_appends_and_its_calls_are_read_back(name, kind):
    tokenizer = trained_tokenizer(kind, name)
    rewrites = "fork" if name == "qwen3-strip" else "refuse"
    renderer = ChatRenderer(
        tokenizer, chat_template=TEMPLATES[name], observation_roles=("tool", "user"), rewrites=rewrites
    )
    assert renderer.call_format == ("json" if name in ("llama3", "gemma") else "hermes")
    assert renderer.stop_ids == (tokenizer.eos_token_id,)
    (_, calling), (_, answer) = renderer.conversation_turns(CONVERSATION[:-1])
    assert renderer.parse(calling).calls == (ToolCall(name="add", arguments={"a": 1, "b": 2}),) * 2
    assert (renderer.parse(answer).calls, renderer.parse(answer).content) == ((), "It is 3.")


@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - {"plain"}))
def test_a_tokenizer_of_another_family_is_refused(name):
    tokenizer = make_tiny_tokenizer() if name in ("llama3", "gemma", "phi4") else llama_tokenizer()
    first = TEMPLATES[name].markers[-1].replace("|", r"\|")
    with pytest.raises(TemplateError, match=f"chat_template '{name}' writes .*{first}.* splits into several"):
        ChatRenderer(tokenizer, chat_template=TEMPLATES[name])


def llama_tokenizer():
    tokenizer = make_tiny_tokenizer()
    text = tokenizer.backend_tokenizer.to_str().replace("<|im_", "<|eot_")
    return type(tokenizer)(tokenizer_object=type(tokenizer.backend_tokenizer).from_str(text))


def test_thinking_is_kept_by_one_qwen3_and_stripped_by_the_other():
    thinking = {"role": "assistant", "content": "<think>\n1+2\n</think>\n\nIt is 3."}
    again = [USER, thinking, {"role": "user", "content": "Sure?"}]
    kept, stripped = render("qwen3", again), render("qwen3-strip", again)
    assert "assistant\n<think>\n1+2\n</think>\n\nIt is 3.<|im_end|>" in kept
    assert "assistant\nIt is 3.<|im_end|>" in stripped
    # Within one question, calls and results included, thinking stays.
    looping = [USER, {**thinking, "tool_calls": CALLS[:1]}, RESULTS[0]]
    assert render("qwen3-strip", looping) == render("qwen3", looping)
    reasoned = {"role": "assistant", "content": "It is 3.", "reasoning_content": "1+2"}
    assert "assistant\n<think>\n1+2\n</think>\n\nIt is 3." in render(
        "qwen3-strip", [USER, reasoned, RESULTS[0]]
    )
    for name in ("qwen3", "qwen3-strip"):
        assert render(name, [USER], enable_thinking=False).endswith("assistant\n<think>\n\n</think>\n\n")


def test_the_stripping_template_needs_forks_where_users_speak_again():
    tokenizer = trained_tokenizer("byte_level")
    template = TEMPLATES["qwen3-strip"]
    ChatRenderer(tokenizer, chat_template=template, observation_roles=("tool",))
    ChatRenderer(tokenizer, chat_template=template, observation_roles=("user",), rewrites="fork")
    with pytest.raises(TemplateError, match=r"message 2 .*think.*history_rewrites = \"fork\""):
        ChatRenderer(tokenizer, chat_template=template, observation_roles=("user",))


def test_what_a_family_cannot_write_is_an_error():
    for messages in ([SYSTEM], [USER, SYSTEM]):
        with pytest.raises(Exception, match="this template"):
            render("gemma", messages)
    tokenizer = trained_tokenizer("byte_level")
    tokenizer.eos_token = None
    with pytest.raises(TemplateError, match="ends turns with the end-of-sequence token, and the tokenizer"):
        ChatRenderer(tokenizer, chat_template=TEMPLATES["plain"])
