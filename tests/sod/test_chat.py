"""The renderer against whole renderings of real templates by real tokenizers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sod.assembly import make_renderer
from sod.chat import ChatRenderer
from sod.chat_templates import HERMES_TEMPLATE
from sod.config import StudentSection
from sod.envs.tool_entry import tool_environment
from sod.errors import TemplateError
from sod.testing import make_tiny_tokenizer
from sod.types import Drift, ToolCall
from tests.sod.trained_tokenizers import KINDS, trained_tokenizer

# A tool turn ends at </tool_call>, an answer at <|im_end|>; there is no generation header at all.
LIGHT = (
    "{%- for m in messages -%}"
    "{%- if m.role == 'tool' -%}{{- '<tool_response>' + m.content + '</tool_response>' -}}"
    "{%- elif m.role == 'assistant' -%}{{- m.content or '' -}}"
    "{%- for c in m.tool_calls or [] -%}"
    '{{- \'<tool_call>{"name": "\' + c.function.name + \'", "arguments": \' -}}'
    "{{- c.function.arguments | tojson -}}"
    "{{- '}</tool_call>' -}}{%- endfor -%}"
    "{{- '' if m.tool_calls else '<|im_end|>' -}}"
    "{%- else -%}{{- m.content + '\n' -}}{%- endif -%}{%- endfor -%}"
)
# Thinking leaves the history as soon as another message follows.
FORGETFUL = HERMES_TEMPLATE.replace(
    '{{- message.content or "" -}}',
    '{{- (message.content or "") if loop.last else (message.content or "").split("</think>")[-1].strip() -}}',
)
# Writes how many messages there are before all of them.
COUNTING = "{{- messages | length -}}" + HERMES_TEMPLATE
# The turn's closing loses its line break when a user message follows.
MOODY = HERMES_TEMPLATE.replace(
    '{{- "<|im_end|>\\n" -}}\n{%- elif message.role == "user"',
    '{{- "<|im_end|>" -}}{{- "\\n" if loop.last or messages[loop.index].role == "tool" else "" -}}\n'
    '{%- elif message.role == "user"',
)
USER = {"role": "user", "content": "What is 17 plus 25?"}


def call_message(code, content=""):
    return {
        "role": "assistant",
        "content": content,
        "tool_calls": [{"type": "function", "function": {"name": "python", "arguments": {"code": code}}}],
    }


def tool(text):
    return {"role": "tool", "content": text}


def whole(tokenizer, messages, *, header=True, **options):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=header, **options)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="module")
def hermes():
    return make_tiny_tokenizer()


@pytest.fixture(scope="module")
def light():
    return make_tiny_tokenizer(chat_template=LIGHT)


def light_renderer(tokenizer):
    return ChatRenderer(
        tokenizer, stop_tokens=("</tool_call>", "<|im_end|>"), observation_roles=("tool", "user")
    )


def ids_of(tokenizer, text):
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("enable_thinking", [None, True, False])
def test_appending_gives_the_whole_rendering(hermes, enable_thinking):
    renderer = ChatRenderer(hermes, observation_roles=("tool", "user"), enable_thinking=enable_thinking)
    options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    messages = [{"role": "system", "content": "Be brief."}, USER]
    ids = renderer.prompt_ids(messages)
    assert ids == whole(hermes, messages, **options)
    thought = "" if enable_thinking is False else "<think>\nadd\n</think>\n\n"
    rounds = [
        (
            thought + '<tool_call>\n{"name": "python", "arguments": {"code": "17+25"}}\n</tool_call>',
            [tool("42")],
        ),
        (thought + "Two calls at once", [tool("1"), tool("error: ä <tool_call>")]),
        (thought + "Is it 42?", [{"role": "user", "content": "yes"}]),
        ("Nothing to add", []),
    ]
    for text, observation in rounds:
        sampled = ids_of(hermes, text + "<|im_end|>")
        ids += sampled + renderer.observation_ids(sampled, observation)
        messages += [{"role": "assistant", "content": text}, *observation]
        assert ids == whole(hermes, messages, **options)


plain_text = st.text(max_size=12).filter(lambda text: text.isprintable() or "\n" in text)
rounds = st.lists(
    st.tuples(plain_text, st.booleans(), st.lists(plain_text, max_size=2), st.sampled_from(["tool", "user"])),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(rounds)
def test_any_conversation_reads_as_the_template_writes_it(rounds):
    tokenizer, renderer = shared_hermes()
    messages = [USER]
    ids = renderer.prompt_ids(messages)
    for text, is_cut_off, observations, role in rounds:
        sampled = ids_of(tokenizer, text + ("" if is_cut_off else "<|im_end|>")) or ids_of(tokenizer, " ")
        observation = [{"role": role, "content": content} for content in observations]
        ids += sampled + renderer.observation_ids(sampled, observation)
        written = renderer.decode(sampled).removesuffix("<|im_end|>")
        messages += [{"role": "assistant", "content": written}, *observation]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert renderer.decode(ids) == text


@cache
def shared_hermes():
    tokenizer = make_tiny_tokenizer()
    return tokenizer, ChatRenderer(tokenizer, observation_roles=("tool", "user"))


@pytest.mark.parametrize("text", ["I was saying", '<tool_call>\n{"name": "py', "", "done</tool_call>"])
def test_a_turn_that_was_cut_off_is_closed_by_context(hermes, text):
    renderer = ChatRenderer(hermes, observation_roles=("tool",))
    sampled = ids_of(hermes, text + "x")
    suffix = renderer.observation_ids(sampled, [tool("error: too long")])
    stopped = renderer.observation_ids((*sampled, hermes.eos_token_id), [tool("error: too long")])
    assert suffix == (hermes.eos_token_id, *stopped)
    assert renderer.decode(stopped).startswith("\n<|im_start|>user\n<tool_response>\nerror: too long\n")


def test_a_foreign_stop_token_does_not_close_the_turn(hermes):
    renderer = ChatRenderer(hermes, stop_tokens=("<|im_end|>", "<|endoftext|>"))
    sampled = ids_of(hermes, "hello<|endoftext|>")
    suffix = renderer.decode(renderer.observation_ids(sampled, [USER]))
    assert suffix.startswith("<|im_end|>\n<|im_start|>user\nWhat")


def test_light_template_tool_turns_and_answers_end_differently(light):
    renderer = light_renderer(light)
    ids = renderer.prompt_ids([USER])
    assert ids == ids_of(light, "What is 17 plus 25?\n")
    call = ids_of(light, '<tool_call>{"name": "python", "arguments": {"code": "1"}}</tool_call>')
    ids += call + renderer.observation_ids(call, [tool("42")])
    assert ids == whole(light, [USER, call_message("1"), tool("42")])
    answer = ids_of(light, "42<|im_end|>")
    ids += answer + renderer.observation_ids(answer, [USER])
    assert renderer.decode(ids).endswith("<tool_response>42</tool_response>42<|im_end|>What is 17 plus 25?\n")


@pytest.mark.parametrize(
    ("sampled", "closing"),
    [
        ('<tool_call>{"na', "</tool_call>"),
        ("the answer is", "<|im_end|>"),
        ("the answer is<|im_end|>", ""),
        ('<tool_call>{"name": "a"}</tool_call>', ""),
        ('<tool_call>{"na<|im_end|>', ""),
    ],
)
def test_light_template_closes_each_kind_of_turn_in_its_way(light, sampled, closing):
    renderer = light_renderer(light)
    suffix = renderer.observation_ids(ids_of(light, sampled), [tool("error")])
    assert renderer.decode(suffix) == closing + "<tool_response>error</tool_response>"


def test_light_template_user_message_after_a_call(light):
    renderer = light_renderer(light)
    suffix = renderer.observation_ids(ids_of(light, "<tool_call>{}</tool_call>"), [USER])
    assert renderer.decode(suffix) == "What is 17 plus 25?\n"


@pytest.mark.parametrize("role", ["tool", "user"])
def test_a_template_that_forgets_thoughts_is_refused_at_the_start(role):
    with pytest.raises(
        TemplateError, match=rf"message 2 \(role '{role}'\) changes what .* wrote before it: .*think"
    ):
        ChatRenderer(make_tiny_tokenizer(chat_template=FORGETFUL), observation_roles=(role,))


def test_forgetting_is_fine_where_nothing_is_thought_or_followed():
    tokenizer = make_tiny_tokenizer(chat_template=FORGETFUL)
    ChatRenderer(tokenizer, observation_roles=("tool",), enable_thinking=False)
    one_turn = ChatRenderer(tokenizer, observation_roles=())
    with pytest.raises(TemplateError, match="message 2"):
        one_turn.observation_ids([5], [tool("x")])


def test_the_proof_names_the_assistant_message_where_that_is_at_fault():
    with pytest.raises(TemplateError, match=r"message 1 \(role 'assistant'\).*'1<\|im_start\|>.* became '3<"):
        ChatRenderer(make_tiny_tokenizer(chat_template=COUNTING))


def test_empty_thought_of_the_header_must_stay_in_the_history():
    lossy = HERMES_TEMPLATE.replace(
        '{%- if skip_thought -%}\n{{- "<think>', '{%- if skip_thought and loop.last -%}\n{{- "<think>'
    )
    assert lossy != HERMES_TEMPLATE
    tokenizer = make_tiny_tokenizer(chat_template=lossy)
    with pytest.raises(TemplateError, match=r"message 2 \(role 'tool'\)"):
        ChatRenderer(tokenizer, observation_roles=("tool",), enable_thinking=False)
    ChatRenderer(tokenizer, observation_roles=("tool",), enable_thinking=False, chat_template=HERMES_TEMPLATE)


def test_a_closing_that_depends_on_the_next_message_is_refused():
    renderer = ChatRenderer(make_tiny_tokenizer(chat_template=MOODY), observation_roles=("tool",))
    with pytest.raises(
        TemplateError, match=r"roles \['user'\] change how the assistant turn before them ends"
    ):
        renderer.observation_ids((5,), [USER])
    answer = {"role": "assistant", "content": "a"}
    with pytest.raises(TemplateError, match=r"message 2 \(role 'user'\) changes"):
        renderer.conversation_turns([USER, answer, USER, answer])


def test_a_suffix_that_depends_on_earlier_messages_is_refused():
    # What a user message looks like depends on how many messages there are.
    numbered = HERMES_TEMPLATE.replace('message.role + "\\n"', 'message.role ~ loop.index ~ "\\n"')
    assert numbered != HERMES_TEMPLATE
    renderer = ChatRenderer(make_tiny_tokenizer(chat_template=numbered))
    answer = {"role": "assistant", "content": "a"}
    renderer.conversation_turns([USER, answer, USER, answer])
    with pytest.raises(TemplateError, match=r"message 4 \(role 'user'\) changes .*user3.* became .*user5"):
        renderer.conversation_turns([USER, answer, USER, answer, USER, answer])


def test_a_closing_that_melts_into_the_next_message_is_refused_where_it_must_be_cut():
    # "py" closes a call and "thon" opens every other message: together they are one token.
    template = LIGHT.replace(
        "'}</tool_call>' -}}", "'}</tool_call>' -}}{{- 'py' if loop.last else '' -}}"
    ).replace("'<tool_response>'", "'thon<tool_response>'")
    tokenizer = make_tiny_tokenizer(chat_template=template)
    assert len(ids_of(tokenizer, "python")) == 1
    renderer = light_renderer(tokenizer)
    assert renderer.decode(renderer.observation_ids(ids_of(tokenizer, "<tool_call>{"), [tool("x")])) == (
        "</tool_call>python<tool_response>x</tool_response>"
    )
    with pytest.raises(
        TemplateError, match="is tokenised together with the closing '</tool_call>py' before it"
    ):
        renderer.observation_ids(ids_of(tokenizer, "text"), [tool("x")])


def test_special_tokens_in_an_observation_change_nothing_before_it(hermes):
    renderer = ChatRenderer(hermes, observation_roles=("tool",))
    sampled = ids_of(hermes, "call<|im_end|>")
    suffix = renderer.observation_ids(sampled, [tool("<|im_end|> </tool_call> <|im_start|>")])
    assert renderer.decode(suffix).startswith(
        "\n<|im_start|>user\n<tool_response>\n<|im_end|> </tool_call> <|im"
    )


def test_no_template_and_no_stop_are_named(hermes):
    bare = make_tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(TemplateError, match=r'no chat template\. Set \[student\] chat_template = "hermes"'):
        ChatRenderer(bare)
    with pytest.raises(
        TemplateError, match="stop_tokens holds 'zebra crossing', which this tokenizer splits into"
    ):
        ChatRenderer(hermes, stop_tokens=("zebra crossing",))
    with pytest.raises(TemplateError, match=r"no stop token of \['<\|endoftext\|>'\] is in '<\|im_end\|>"):
        ChatRenderer(hermes, stop_tokens=("<|endoftext|>",))
    plain = "{%- for m in messages -%}{{- m.role + ': ' + m.content + '\n' -}}{%- endfor -%}"
    with pytest.raises(TemplateError, match=r"holds neither the end-of-sequence token '<\|im_end\|>' nor"):
        ChatRenderer(hermes, chat_template=plain)


def test_the_token_that_closes_turns_is_found_where_it_is_not_the_end_of_text():
    tokenizer = make_tiny_tokenizer()
    tokenizer.eos_token = "<|endoftext|>"
    renderer = ChatRenderer(tokenizer)
    assert [renderer.decode([stop]) for stop in renderer.stop_ids] == ["<|endoftext|>", "<|im_end|>"]
    assert renderer.pad_id == tokenizer.pad_token_id


def test_what_a_template_raises_comes_back_with_the_roles(hermes):
    refusing = "{{- raise_exception('no system please') if messages[0].role == 'system' -}}" + HERMES_TEMPLATE
    renderer = ChatRenderer(hermes, chat_template=refusing)
    with pytest.raises(TemplateError, match=r"roles \['system', 'user'\]: no system please"):
        renderer.prompt_ids([{"role": "system", "content": "x"}, USER])


def test_a_template_without_tool_calls_is_refused_for_tools(hermes):
    plain = (
        "{%- for m in messages -%}{{- m.role + ': ' + m.content + '<|im_end|>' -}}{%- endfor -%}"
        "{{- 'assistant: ' if add_generation_prompt else '' -}}"
    )
    ChatRenderer(hermes, chat_template=plain)
    with pytest.raises(
        TemplateError, match=r"does not show an assistant message with the keys \['content', 'role', 'tool"
    ):
        ChatRenderer(hermes, chat_template=plain, observation_roles=("tool",))


def test_parse_strips_the_stop_token_and_reads_calls(hermes, light):
    renderer = ChatRenderer(hermes)
    turn = renderer.parse(ids_of(hermes, "<think>\nhm\n</think>\n\nThe answer is 42.<|im_end|>"))
    assert (turn.text, turn.content) == ("<think>\nhm\n</think>\n\nThe answer is 42.", "The answer is 42.")
    turn = light_renderer(light).parse(
        ids_of(light, 'ok <tool_call>{"name": "python", "arguments": {"code": "1"}}</tool_call>')
    )
    assert turn.calls == (ToolCall(name="python", arguments={"code": "1"}),)
    assert turn.content == "ok"
    assert renderer.parse("cut off").text == "cut off"


def test_a_header_that_opens_a_thought_makes_the_turn_begin_in_it():
    template = HERMES_TEMPLATE.replace(
        '{{- "<|im_start|>assistant\\n" -}}\n{{- "<think>\\n\\n</think>\\n\\n" if skip_thought else "" -}}',
        '{{- "<|im_start|>assistant\\n<think>\\n" -}}',
    )
    assert template != HERMES_TEMPLATE
    renderer = ChatRenderer(make_tiny_tokenizer(chat_template=template), observation_roles=("tool",))
    assert renderer.parse("17 plus 25 is").content == ""
    assert renderer.parse("17 plus 25 is\n</think>\n\n42<|im_end|>").content == "42"


def test_a_written_conversation_splits_into_what_a_rollout_would_have(hermes):
    renderer = ChatRenderer(hermes, observation_roles=("tool",))
    messages = [
        USER,
        call_message("17+25", "<think>\nadd\n</think>\n\nLet me see."),
        tool("42"),
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "sure?"},
        {"role": "assistant", "content": "yes"},
    ]
    turns = renderer.conversation_turns(messages)
    assert [renderer.decode(sampled) for _, sampled in turns][1:] == ["42<|im_end|>", "yes<|im_end|>"]
    joined = tuple(token for context, sampled in turns for token in context + sampled)
    # All but the line break behind the last stop token.
    assert joined == whole(hermes, messages, header=False)[:-1]


def test_a_written_conversation_in_the_light_template(light):
    renderer = light_renderer(light)
    messages = [USER, call_message("1"), tool("1"), {"role": "assistant", "content": "1"}]
    turns = renderer.conversation_turns(messages)
    joined = tuple(token for context, sampled in turns for token in context + sampled)
    assert joined == whole(light, messages, header=False)
    two = call_message("1")
    two["tool_calls"] *= 2
    with pytest.raises(TemplateError, match="message 1 does not end at its first stop token"):
        renderer.conversation_turns([USER, two])


# Calls as one family writes them, and nobody here reads.
BRACKETS = HERMES_TEMPLATE.replace("<tool_call>\\n", "[CALL]").replace("\\n</tool_call>", "[/CALL]")


def test_a_template_whose_calls_nobody_reads_is_refused_where_there_are_tools(hermes):
    ChatRenderer(hermes, chat_template=BRACKETS)
    with pytest.raises(
        TemplateError, match=r"writes a call as '.*\[CALL\].*none of the formats hermes, json"
    ):
        ChatRenderer(hermes, chat_template=BRACKETS, observation_roles=("tool",))
    named = ChatRenderer(hermes, chat_template=BRACKETS, observation_roles=("tool",), call_format="python")
    turn = named.parse("```python\n1\n```<|im_end|>")
    assert turn.calls == (ToolCall(name="python", arguments={"code": "1\n"}),)


def test_the_format_of_calls_comes_from_settings_then_environment_then_template(hermes):
    tools = tool_environment([double], "exact")
    section = StudentSection(model="any", call_format="python")
    asking = replace(tools, call_format="action")
    assert make_renderer(hermes, tools, StudentSection(model="any")).call_format == "hermes"
    assert make_renderer(hermes, asking, StudentSection(model="any")).call_format == "action"
    assert make_renderer(hermes, asking, section).call_format == "python"
    assert make_renderer(hermes, asking, None).call_format == "action"
    tools.close()


@pytest.mark.parametrize("kind", KINDS)
def test_drift_is_what_a_tokenizer_would_have_done_otherwise(kind):
    tokenizer = trained_tokenizer(kind)
    renderer = ChatRenderer(tokenizer, chat_template=HERMES_TEMPLATE)
    prompt = renderer.prompt_ids([USER])
    stop = tokenizer.eos_token_id
    answer = ids_of(tokenizer, "<|im_start|>The answer is 42")[1:]
    assert renderer.drift(prompt, (*answer, stop)) is Drift.CLEAN
    spelt = tuple(token for letter in "answer" for token in ids_of(tokenizer, f"<|im_start|>{letter}")[1:])
    assert renderer.decode((stop, *spelt)) == "<|im_end|>answer"
    assert renderer.drift(prompt, (*spelt, stop)) is Drift.REALIGN
    observation = renderer.observation_ids((*answer, stop), [USER])
    assert renderer.drift(observation, (*answer, stop), last_id=stop) is Drift.CLEAN
    # Half of a character: no text gives it back.
    half = renderer._encode("🙂")[-1:]
    assert renderer.drift(prompt, (*half, stop)) is Drift.REALIGN


def test_a_header_that_the_turn_melts_into_is_drift():
    # "\n" ends the header and begins the turn; together they are one token.
    tokenizer = trained_tokenizer("byte_level")
    renderer = ChatRenderer(tokenizer, chat_template=HERMES_TEMPLATE)
    assert len(ids_of(tokenizer, "\n\n")) == 1
    newline = ids_of(tokenizer, "\n")
    assert renderer.drift(renderer.prompt_ids([USER]), (*newline, tokenizer.eos_token_id)) is Drift.REALIGN


def test_decoding_keeps_every_space():
    tokenizer = trained_tokenizer("byte_level", clean_up_tokenization_spaces=True)
    text = "x = [1 , 2] ; do n't"
    renderer = ChatRenderer(tokenizer, chat_template=HERMES_TEMPLATE)
    assert renderer.decode(ids_of(tokenizer, text)) == text


def test_forked_ids_are_the_whole_conversation_or_nothing(hermes):
    renderer = ChatRenderer(hermes, chat_template=FORGETFUL, rewrites="fork", observation_roles=("user",))
    plain = renderer.assistant_message(renderer.parse("42<|im_end|>"))
    assert plain == {"role": "assistant", "content": "42"}
    assert renderer.forked_ids([USER], plain, [USER]) is None
    thinking = renderer.assistant_message(renderer.parse("<think>\nhm\n</think>\n\n42<|im_end|>"))
    assert renderer.forked_ids([USER], thinking, [USER]) == renderer.prompt_ids([USER, plain, USER])
    moody = ChatRenderer(hermes, chat_template=MOODY, rewrites="fork", observation_roles=("tool",))
    assert moody.forked_ids([USER], plain, [USER]) == moody.prompt_ids([USER, plain, USER])


def test_a_run_may_name_our_template_in_place_of_one_that_forgets():
    tokenizer = make_tiny_tokenizer(chat_template=FORGETFUL)
    tools = tool_environment([double], "exact")
    with pytest.raises(TemplateError, match=r'Set \[student\] chat_template = "hermes"'):
        make_renderer(tokenizer, tools, StudentSection(model="any"))
    renderer = make_renderer(tokenizer, tools, StudentSection(model="any", chat_template="hermes"))
    assert renderer.decode(renderer.prompt_ids([{"role": "user", "content": "Hi"}])).endswith("assistant\n")
    tools.close()


def double(number: int) -> int:
    """Doubles a number.

    Args:
        number: Any number.
    """
    return 2 * number
