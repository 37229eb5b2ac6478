"""Text environments: how actions are read, and what they come to."""

from __future__ import annotations

import pytest

from sod.envs.expert import expert_conversation
from sod.envs.text_game import Observation, TextEnvironment, TextSection, read_action
from sod.errors import ConfigError, DataError, RolloutError
from sod.parsing import ParsedTurn, parse_hermes
from sod.tools.calls import ParseFailure
from sod.types import Task, ToolCall, ToolOutcome

TASK = Task(
    task_id="t", messages=({"role": "system", "content": "Play."}, {"role": "user", "content": "Climb."})
)


class Stairs:
    """Three steps up win; a step down is possible from the first on; anything else is not understood."""

    def __init__(self) -> None:
        self.height, self.num_closed = 0, 0

    def begin(self) -> Observation:
        self.height = 0
        return self._view()

    def act(self, action: str) -> Observation:
        if action not in self._view().actions:
            return self._view(is_understood=False)
        self.height += 1 if action == "go up" else -1
        return self._view()

    def expert_action(self) -> str:
        return "go up"

    def close(self) -> None:
        self.num_closed += 1

    def _view(self, *, is_understood: bool = True) -> Observation:
        return Observation(
            text=f"You are on step {self.height}.",
            actions=("go up", "go down") if self.height else ("go up",),
            score=self.height / 3,
            is_done=self.height == 3,
            is_success=self.height == 3,
            is_understood=is_understood,
        )


def section(**values) -> TextSection:
    return TextSection(name="stairs", **values)


def play(environment: TextEnvironment, *texts: str):
    return [environment.step(parse_hermes(text), ()) for text in texts]


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<action>go up</action>", "go up"),
        ("Up it is.\n<action>\n go \n up </action> Done.", "go up"),
        ("<think><action>go down</action></think><action>go up</action>", "go up"),
    ],
)
def test_one_action_is_read_wherever_it_stands_outside_of_thinking(text, action):
    assert read_action(parse_hermes(text)) == action


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("go up", "error: no action was found; write exactly one, <action>like this</action>"),
        ("<action>go up", "error: no action was found"),
        ("<think><action>go up</action>", "error: no action was found"),
        ("<action> </action>", "error: the action is empty"),
        ("<action>a</action><action>b</action>", "error: 2 actions were found; write exactly one per turn"),
    ],
)
def test_what_is_no_action_says_why(text, reason):
    assert read_action(parse_hermes(text)).reason.startswith(reason)


def test_actions_that_the_parser_took_out_as_calls_count_too():
    call = ToolCall(name="act", arguments={"action": "go up"})
    assert read_action(ParsedTurn(text="", content="", calls=(call,))) == "go up"
    other = ToolCall(name="python", arguments={"code": "1"})
    assert "no action was found" in read_action(ParsedTurn(text="", content="", calls=(other,))).reason
    failure = ParseFailure(text="<action>", reason="it is not closed")
    assert "it is not closed" in read_action(ParsedTurn(text="", content="", calls=(failure,))).reason


def test_the_instruction_comes_first_and_possible_actions_last():
    environment = TextEnvironment(TASK, Stairs(), section())
    system, user = environment.reset()
    assert system == TASK.messages[0]
    assert user == {
        "role": "user",
        "content": "Climb.\n\nYou are on step 0.\n\nPossible actions:\n- go up",
    }
    silent = TextEnvironment(TASK, Stairs(), section(show_actions=False))
    assert silent.reset()[1]["content"] == "Climb.\n\nYou are on step 0."


def test_score_is_given_out_as_it_grows_and_taken_back_as_it_falls():
    environment = TextEnvironment(TASK, Stairs(), section())
    environment.reset()
    steps = play(environment, *(f"<action>go {way}</action>" for way in ("up", "down", "up", "up", "up")))
    assert [round(step.reward * 3) for step in steps] == [1, -1, 1, 1, 1]
    assert [step.is_done for step in steps] == [False] * 4 + [True]
    assert steps[-1].is_success
    assert (
        steps[0]
        .messages[0]["content"]
        .startswith("You are on step 1.\n\nPossible actions:\n- go up\n- go down")
    )
    assert "Possible" not in steps[-1].messages[0]["content"]


def test_reward_for_success_alone():
    environment = TextEnvironment(TASK, Stairs(), section(reward="success"))
    environment.reset()
    assert [step.reward for step in play(environment, *["<action>go up</action>"] * 3)] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(("invalid", "num_errors"), [("unreadable", 1), ("impossible", 2)])
def test_invalid_turns_are_flagged_and_cost_what_is_set(invalid, num_errors):
    environment = TextEnvironment(TASK, Stairs(), section(invalid_action=invalid, invalid_penalty=0.1))
    environment.reset()
    steps = play(environment, "up!", "<action>fly</action>", "<action>go up</action>")
    errors = [step.results[0].is_error for step in steps]
    assert errors == [True, num_errors == 2, False]
    assert [step.reward for step in steps] == [
        -0.1,
        -0.1 if num_errors == 2 else 0.0,
        pytest.approx(1 / 3),
    ]
    assert steps[0].results[0].outcome is ToolOutcome.INVALID_JSON
    # The world is shown again, so that the student can go on from where it is.
    assert steps[0].messages[0]["content"].startswith("error: no action was found")
    assert "You are on step 0.\n\nPossible actions:\n- go up" in steps[0].messages[0]["content"]


def test_long_observations_lose_their_middle_but_not_the_actions():
    class Talk(Stairs):
        def _view(self, *, is_understood: bool = True) -> Observation:
            return Observation(text="a" * 5000 + "the end", actions=("go up",))

    environment = TextEnvironment(TASK, Talk(), section(max_observation_chars=100))
    text = environment.reset()[1]["content"]
    assert len(text) < 200
    assert "characters dropped" in text
    assert text.endswith("the end\n\nPossible actions:\n- go up")


def test_a_task_must_end_with_the_instruction():
    for messages in ((), ({"role": "system", "content": "x"},)):
        with pytest.raises(DataError, match="task 't' must end with a user message"):
            TextEnvironment(Task(task_id="t", messages=messages), Stairs(), section())


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"\[environment\] invalid_penalty = -1.0: wanted at least 0"):
        section(invalid_penalty=-1.0)
    with pytest.raises(ConfigError, match=r"reward = 'won': wanted one of 'score', 'success'"):
        section(reward="won")


def test_the_expert_writes_a_conversation_that_ends_with_success():
    game = Stairs()
    messages = expert_conversation(TextEnvironment(TASK, game, section()), TASK, max_turns=3)
    assert [message["role"] for message in messages] == [
        *("system", "user", "assistant", "user", "assistant", "user", "assistant")
    ]
    assert messages[-1]["content"] == "<action>go up</action>"
    assert game.num_closed == 1


def test_an_expert_that_fails_or_is_none_is_refused():
    game = Stairs()
    with pytest.raises(RolloutError, match=r"did not solve task 't' in 2 turns; .*step 2"):
        expert_conversation(TextEnvironment(TASK, game, section()), TASK, max_turns=2)
    assert game.num_closed == 1

    class Mute:
        begin, act, close = Stairs.begin, Stairs.act, Stairs.close

    with pytest.raises(DataError, match="Mute has no expert, asked for one in task 't'"):
        TextEnvironment(TASK, Mute(), section()).expert_turn()
    with pytest.raises(RolloutError, match="_Closable has no expert"):
        expert_conversation(_Closable(), TASK, max_turns=2)


class _Closable:
    tools = ()

    def close(self) -> None:
        pass
