"""A teacher that is told more: what it is told, in which prompts it stands, and whose tokens it scores."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from sod.algorithms import LossContext, make_algorithm
from sod.chat import ChatRenderer
from sod.config import AdamWSection
from sod.config_algorithms import OPDSection, OPSDAnswerSection, OPSDHintSection
from sod.config_teachers import SelfTeacherSection
from sod.engines.base import SamplingParams
from sod.engines.scripted import ScriptedEngine
from sod.envs.tool_env import ToolEnvironment
from sod.errors import ConfigError, DataError, RolloutError
from sod.loop.update import UpdateSettings, run_update
from sod.optim import OptimizerSet
from sod.packing import pack
from sod.rewards import get_reward
from sod.rollout.collector import collect
from sod.rollout.history import History
from sod.rollout.limits import RolloutLimits
from sod.rollout.privilege import Privilege, privilege_of
from sod.rollout.store import read_trajectories, write_trajectories
from sod.scoring import row_logits
from sod.teacher import CurrentPolicy, LocalTeacher
from sod.teacher.base import teacher_scores
from sod.teacher.cache import RoundTargets
from sod.teacher.factory import own_teacher
from sod.tokenization import tokenize_for_teacher, tokenize_trajectory
from sod.tools import ToolRunner, tool
from sod.types import Task, Turn

TRACE = [
    {"role": "user", "content": "17+25?"},
    {
        "role": "assistant",
        "content": "I add.",
        "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 17, "b": 25}}}],
    },
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "The answer is 42"},
]


@tool
def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: One.
        b: The other.
    """
    return str(a + b)


def task(name="t", **fields):
    messages = (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "17+25?"},
    )
    return Task(task_id=name, messages=messages, fields=fields or {"answer": "42"})


@pytest.mark.parametrize(
    ("section", "fields", "text"),
    [
        (OPSDAnswerSection(), {"answer": "42"}, "42"),
        (OPSDAnswerSection(), {"answer": 42}, "42"),
        (OPSDAnswerSection(), {"answer": ["Rome", "Roma"]}, "Rome or Roma"),
        (OPSDHintSection(), {"hint": "add them"}, "add them"),
        (OPSDHintSection(hint_field="messages"), {"messages": TRACE}, '1. I add. add({"a": 17, "b": 25})'),
    ],
)
def test_what_a_teacher_is_told(section, fields, text):
    privilege = privilege_of(section)
    assert privilege.text(task(**fields)) == text
    system, user = privilege.told(task(**fields), task().messages)
    assert system == task().messages[0]
    assert user["content"] == "17+25?" + section.prompt.replace(section.placeholder, text)
    privilege.check([task(**fields)])


@pytest.mark.parametrize(
    ("section", "fields", "words"),
    [
        (
            OPSDAnswerSection(),
            {"hint": "x"},
            r"tells the teacher fields\['answer'\] .* is 'None'; wanted a text",
        ),
        (OPSDAnswerSection(), {"answer": {"inputs": []}}, "wanted a text, a number or a list of them"),
        (OPSDHintSection(), {"answer": "42"}, r'"opsd_hint" tells the teacher fields\[.hint.\]'),
        (OPSDHintSection(), {"hint": " "}, "Add the column to"),
        (OPSDHintSection(hint_field="m"), {"m": TRACE[-1:]}, "conversation of at least two turns"),
    ],
)
def test_a_task_without_it_is_named(section, fields, words):
    with pytest.raises(ConfigError, match=words):
        Privilege(section=section).check([task("good", **{section.told_field: "y"}), task(**fields)])


def test_settings_and_prompts_without_a_place_for_it():
    assert privilege_of(OPDSection()) is None
    with pytest.raises(ConfigError, match=r"\[algorithm\] prompt = 'Think': wanted \{hint\} in it once"):
        OPSDHintSection(prompt="Think")
    with pytest.raises(ConfigError, match="in it once, where"):
        OPSDAnswerSection(prompt="{answer} {answer}")
    with pytest.raises(RolloutError, match=r"opens with roles \['system'\]"):
        privilege_of(OPSDAnswerSection()).told(task(), task().messages[:1])


@pytest.fixture(scope="module")
def renderer(tiny_tokenizer):
    return ChatRenderer(tiny_tokenizer, tools=(add,))


def rollout(renderer, section, *, history=None, **changes):
    script = ['<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>', "It is 42"]
    engine = ScriptedEngine([[renderer._encode(turn + "<|im_end|>")] for turn in script])
    if history is None:
        engine = ScriptedEngine([[renderer._encode(turn + "<|im_end|>") for turn in script]])
    with ToolRunner((add,), timeout_s=5.0) as runner:
        (made,) = collect(
            [task()],
            engine=engine,
            renderer=renderer,
            environment_factory=partial(ToolEnvironment, tools=(add,), reward=get_reward("number")),
            limits=RolloutLimits(max_turns=4, max_turn_tokens=200, max_trajectory_tokens=2000),
            params=SamplingParams(max_turn_tokens=200, stop_ids=renderer.stop_ids),
            seed=0,
            runner=runner,
            history=history,
            privilege=privilege_of(section),
            **changes,
        )
    return made


def test_only_prompts_differ_and_everything_behind_them_is_kept(renderer, tmp_path):
    plain, told = rollout(renderer, OPDSection()), rollout(renderer, OPSDAnswerSection())
    stripped = [replace(turn, teacher_context_ids=None) for turn in told.turns]
    seconds = [[replace(r, seconds=0.0) for r in turn.results] for turn in plain.turns]
    assert [[replace(r, seconds=0.0) for r in turn.results] for turn in stripped] == seconds
    assert [(t.context_ids, t.sampled_ids) for t in stripped] == [
        (t.context_ids, t.sampled_ids) for t in plain.turns
    ]
    messages = privilege_of(OPSDAnswerSection()).told(task(), task().messages)
    assert told.turns[0].teacher_context_ids == renderer.prompt_ids(messages)
    assert told.turns[1].teacher_context_ids is None
    assert tokenize_for_teacher([plain]) is None
    ((read,),) = tokenize_for_teacher([told])
    (own,) = tokenize_trajectory(told)
    extra = len(told.turns[0].teacher_context_ids) - len(told.turns[0].context_ids)
    assert extra > 0
    behind = len(told.turns[0].context_ids)
    assert torch.equal(read.input_ids[behind + extra :], own.input_ids[behind:])
    assert torch.equal(read.step_ids[behind + extra :], own.step_ids[behind:])
    path = tmp_path / "t.jsonl.gz"
    write_trajectories(path, [told])
    assert read_trajectories(path) == [told]


def test_every_sequence_of_a_trajectory_begins_with_a_prompt_of_its_own(renderer):
    made = rollout(renderer, OPSDAnswerSection(), history=History(window=0))
    assert made.segments == (0, 1)
    for turn in made.turns:
        extra = renderer.decode(turn.teacher_context_ids)
        assert "The right answer is: 42" in extra
        assert "The right answer" not in renderer.decode(turn.context_ids)
    assert "The latest answer is:\n3" in renderer.decode(made.turns[1].teacher_context_ids)


def test_a_template_that_rewrites_its_history_does_so_for_the_teacher_too(tiny_tokenizer):
    options = {"rewrites": "fork", "chat_template": _COUNTING, "call_format": "hermes"}
    rewriting = ChatRenderer(tiny_tokenizer, tools=(add,), **options)
    made = rollout(rewriting, OPSDAnswerSection(), history=History())
    assert made.segments == (0, 1)
    second = rewriting.decode(made.turns[1].teacher_context_ids)
    assert "The right answer is: 42" in second
    own = rewriting.decode(made.turns[1].context_ids)
    told = OPSDAnswerSection().prompt.replace("{answer}", "42")
    assert second == own.replace("17+25?", "17+25?" + told)


# Says in its first line how many messages there are: any message changes what came before it.
_COUNTING = (
    "<|im_start|>system\n{{ messages | length }}<|im_end|>\n{% for message in messages %}<|im_start|>"
    "{{ message.role }}\n{{ message.content }}{% for call in message.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_prompt_that_is_too_long_is_named(renderer):
    with pytest.raises(
        RolloutError, match=r"task 't': the teacher's prompt has \d+ tokens more .* = 3\. Raise"
    ):
        rollout(renderer, OPSDAnswerSection(max_extra_tokens=3))


@pytest.fixture
def batch(renderer):
    one = rollout(renderer, OPSDAnswerSection())
    other = replace(
        one, turns=(one.turns[0], replace(one.turns[1], sampled_ids=one.turns[1].sampled_ids[-2:]))
    )
    sequences = [tokenize_trajectory(each) for each in (one, other)]
    (made,) = pack(sequences, range(2), max_tokens=9999, pad_id=0, told=tokenize_for_teacher([one, other]))
    return made, (one, other)


def test_the_teacher_scores_the_same_rows_behind_its_own_prompt(batch, tiny_model):
    made, trajectories = batch
    scores = teacher_scores(LocalTeacher(tiny_model), made).logits()
    assert torch.equal(made.told.labels, made.labels)
    assert torch.equal(made.told.row_steps, made.row_steps)
    wanted = []
    for place in made.trajectories:
        turns = trajectories[place].turns
        ids, rows = [], []
        for turn in turns:
            ids += turn.teacher_context_ids or turn.context_ids
            rows += range(len(ids) - 1, len(ids) + len(turn.sampled_ids) - 1)
            ids += turn.sampled_ids
        with torch.no_grad():
            wanted.append(tiny_model(torch.tensor([ids])).logits[0, rows])
    torch.testing.assert_close(scores, torch.cat(wanted), rtol=1e-4, atol=1e-4)
    own = row_logits(tiny_model, made).detach()
    assert float((own - scores).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("section", "weights"),
    [(OPSDAnswerSection(), "start"), (OPSDHintSection(divergence="reverse_kl"), "current")],
)
def test_the_student_comes_to_write_what_it_would_if_it_were_told(batch, tiny_model, section, weights):
    made, _ = batch
    teacher = own_teacher(SelfTeacherSection(weights=weights), tiny_model)
    algorithm = make_algorithm(section, vocab_size=tiny_model.config.vocab_size)
    optimizer = OptimizerSet(tiny_model, AdamWSection(learning_rate=1e-3))
    settings = UpdateSettings(
        context=LossContext(denominator=made.num_rows, round_number=1),
        learning_rate=1e-3,
        learning_rate_scale=1.0,
        max_grad_norm=1.0,
    )

    def update(batch):
        targets = RoundTargets(teacher, None, max_bytes=0).source(0)
        return run_update(tiny_model, optimizer, algorithm, [batch], targets, settings).metrics["loss/total"]

    assert update(replace(made, told=None)) == pytest.approx(0.0, abs=1e-5)
    losses = [update(made) for _ in range(10)]
    assert losses[0] > 0.01
    assert losses[-1] < 0.6 * losses[0]


def test_other_responses_are_refused(batch):
    _, (one, other) = batch
    sequences = [tokenize_trajectory(one)]
    with pytest.raises(
        DataError, match=r"trajectories \(0,\) have other responses as the teacher reads them"
    ):
        pack(sequences, [0], max_tokens=9999, pad_id=0, told=[tokenize_trajectory(other)])


def test_the_student_as_it_stands_is_asked_anew_and_left_in_its_mode(batch, tiny_model):
    made, _ = batch
    tiny_model.train()
    teacher = CurrentPolicy(tiny_model)
    targets = RoundTargets(teacher, None, max_bytes=10**9).source(0)
    before = targets(0, made).teacher.logits()
    assert tiny_model.training
    assert not before.requires_grad
    assert all(parameter.requires_grad for parameter in tiny_model.parameters())
    with torch.no_grad():
        tiny_model.model.norm.weight.mul_(1.5)
    after = targets(0, made).teacher.logits()
    assert float((before - after).abs().max()) > 0.1


def test_a_turn_checks_what_the_teacher_reads():
    with pytest.raises(ValueError, match="-3 is no token id"):
        Turn(context_ids=(1,), sampled_ids=(2,), teacher_context_ids=(-3,))
