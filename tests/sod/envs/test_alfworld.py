"""ALFWorld: the problems that we make, checked as text; and played where its package is installed."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec

import pytest

from sod.envs import alfworld_env
from sod.envs.alfworld_env import ALFWorldSection, alfworld_tasks
from sod.envs.alfworld_problems import SPLITS, TASK_TYPES, alfworld_problem, shown_names
from sod.envs.alfworld_rooms import CLEANABLE, COOLABLE, HEATABLE, OPENABLE
from sod.envs.expert import expert_conversation
from sod.envs.registry import TaskRequest, build_environment
from sod.errors import ConfigError, DataError
from sod.parsing import parse_hermes
from sod.types import Task

MISSING = [name for name in ("alfworld", "textworld", "fast_downward") if find_spec(name) is None]
needs_alfworld = pytest.mark.skipif(
    bool(MISSING),
    reason=f"not installed: {', '.join(MISSING)}; run `make alfworld`, which compiles for minutes",
)


KINDS = ("object", "receptacle", "agent", "location")


def facts(pddl: str, predicate: str) -> list[tuple[str, ...]]:
    init = pddl.partition("(:init")[2].partition("(:goal")[0]
    return [tuple(found.split()) for found in re.findall(rf"\({predicate} ([^()]*)\)", init)]


@pytest.mark.parametrize("task_type", TASK_TYPES)
@pytest.mark.parametrize("split", SPLITS)
def test_every_problem_is_sound(task_type, split):
    for seed in range(25):
        problem = alfworld_problem(task_type, seed, split=split)
        assert problem == alfworld_problem(task_type, seed, split=split)
        text = problem.pddl
        assert text.count("(") == text.count(")")
        declared = dict(line.split(" - ") for line in text.splitlines() if re.fullmatch(r"\S+ - \w+", line))
        body = text.partition("(:init")[2]
        named = {one for _, rest in re.findall(r"\((\w+) ([^()]*)\)", body) for one in rest.split()}
        assert {one for one in named if not one.startswith("?")} - set(declared) <= {"-", *KINDS}
        places = dict(facts(text, "inReceptacle"))
        at = dict(facts(text, "receptacleAtLocation"))
        assert {name for name, kind in declared.items() if kind == "object"} == set(places)
        assert dict(facts(text, "objectAtLocation")) == {one: at[place] for one, place in places.items()}
        assert len(set(at.values())) == len(at)
        holds = set(facts(text, "canContain"))
        rtypes, otypes = dict(facts(text, "receptacleType")), dict(facts(text, "objectType"))
        assert all(
            (rtypes[place], otypes[one]) in holds or "Lamp" in otypes[one] for one, place in places.items()
        )


@pytest.mark.parametrize(
    ("task_type", "able", "kinds", "words"),
    [
        ("pick_clean_then_place_in_recep", "cleanable", CLEANABLE, "put a clean "),
        ("pick_heat_then_place_in_recep", "heatable", HEATABLE, "put a hot "),
        ("pick_cool_then_place_in_recep", "coolable", COOLABLE, "put a cool "),
    ],
)
def test_what_is_to_be_treated_can_be(task_type, able, kinds, words):
    for seed in range(40):
        problem = alfworld_problem(task_type, seed)
        assert problem.sentence.startswith(words)
        thing = problem.sentence.split()[3]
        assert thing in kinds
        assert (f"{thing}_bar_1",) in facts(problem.pddl, able)


def test_the_task_is_not_done_at_the_beginning_and_can_be_done():
    for seed in range(60):
        problem = alfworld_problem("pick_two_obj_and_place", seed)
        thing, target = problem.sentence.split()[2], problem.sentence.split()[4]
        places = dict(facts(problem.pddl, "inReceptacle"))
        wanted = [place for one, place in places.items() if one.startswith(f"{thing}_bar_")]
        assert len(wanted) == 2
        assert not any(place.startswith(f"{target}_bar_") for place in wanted)
        kinds = {dict(facts(problem.pddl, "receptacleType"))[place] for place in wanted}
        assert kinds
    lamp = alfworld_problem("look_at_obj_in_light", 3)
    assert facts(lamp.pddl, "toggleable") == [("desklamp_bar_1",)]
    assert ("desklamp_bar_1",) not in facts(lamp.pddl, "pickupable")
    assert "(isToggled ?lamp)" in lamp.pddl


def test_only_what_opens_is_openable():
    pddl = alfworld_problem("pick_cool_then_place_in_recep", 0).pddl
    opened = {name.partition("_bar_")[0] for (name,) in facts(pddl, "openable")}
    assert {"fridge", "microwave"} <= opened <= OPENABLE
    assert not facts(pddl, "opened")


def test_unseen_rooms_are_furnished_as_in_no_other_split():
    def layouts(split: str) -> set[str]:
        problems = [
            alfworld_problem("pick_heat_then_place_in_recep", seed, split=split) for seed in range(150)
        ]
        return {str(sorted(facts(one.pddl, "receptacleType"))) for one in problems}

    seen, unseen = layouts("train") | layouts("valid_seen"), layouts("valid_unseen")
    assert len(unseen) > 3
    assert not seen & unseen


def test_names_are_those_that_alfworld_shows():
    names = shown_names(
        ["drawer_bar_1", "drawer_bar_2", "sink_bar_1_bar_sinkbasin", "agent1", "desklamp_bar_1"]
    )
    assert names == {
        "drawer_bar_1": "drawer 2",
        "drawer_bar_2": "drawer 1",
        "sink_bar_1_bar_sinkbasin": "sinkbasin 1",
        "agent1": "agent1",
        "desklamp_bar_1": "desklamp 1",
    }


def test_generated_tasks_take_the_types_in_turn():
    tasks = alfworld_tasks(ALFWorldSection(), TaskRequest(num_tasks=7, seed=2))
    assert [task.fields["task_type"] for task in tasks] == [*TASK_TYPES, TASK_TYPES[0]]
    assert tasks[3:5] == alfworld_tasks(ALFWorldSection(), TaskRequest(num_tasks=2, seed=2, first=3))
    assert len({task.fields["problem_seed"] for task in tasks}) == 7


@pytest.fixture
def data(tmp_path):
    for name, task_type, game in (
        ("a", "pick_and_place_simple", {"solvable": True}),
        ("b", "pick_and_place_simple", {"solvable": False}),
        ("c", "pick_heat_then_place_in_recep", {"solvable": True}),
        ("d_movable", "pick_and_place_simple", {"solvable": True}),
    ):
        folder = tmp_path / "train" / name / "trial"
        folder.mkdir(parents=True)
        problem = alfworld_problem(task_type, 1)
        rows = {"pddl_domain": "(d)", "pddl_problem": problem.pddl, "grammar": "g", **game}
        (folder / "game.tw-pddl").write_text(json.dumps(rows))
        (folder / "traj_data.json").write_text(json.dumps({"task_type": task_type}))
    return tmp_path


def test_games_of_the_data_set_are_found_by_type(data):
    section = ALFWorldSection(data=data)
    tasks = alfworld_tasks(section, TaskRequest(num_tasks=2))
    assert sorted(task.fields["task_type"] for task in tasks) == [
        "pick_and_place_simple",
        "pick_heat_then_place_in_recep",
    ]
    (heat,) = alfworld_tasks(
        ALFWorldSection(data=data, task_types=("pick_heat_then_place_in_recep",)), TaskRequest(num_tasks=1)
    )
    assert heat.fields["game_file"].endswith("train/c/trial/game.tw-pddl")
    with pytest.raises(DataError, match=r"3 games asked for, but .*train has 2 of these types"):
        alfworld_tasks(section, TaskRequest(num_tasks=3))
    with pytest.raises(DataError, match=r"valid_seen does not exist; \[environment\] data names its parent"):
        alfworld_tasks(section, TaskRequest(num_tasks=1, split="valid_seen"))
    (data / "train/c/trial/traj_data.json").write_text("{")
    with pytest.raises(DataError, match=r"alfworld: .*traj_data.json cannot be read"):
        alfworld_tasks(section, TaskRequest(num_tasks=1))


def test_bad_requests_and_tasks_are_refused(tmp_path):
    with pytest.raises(DataError, match="task_type is 'fly'; choose one of pick_and_place_simple"):
        alfworld_problem("fly", 0)
    with pytest.raises(DataError, match="split is 'test'; choose one of train, valid_seen, valid_unseen"):
        alfworld_problem(TASK_TYPES[0], 0, split="test")
    with pytest.raises(DataError, match="alfworld_tasks: split is 'test'"):
        alfworld_tasks(ALFWorldSection(), TaskRequest(num_tasks=1, split="test"))
    with pytest.raises(DataError, match="num_tasks is 0 and first 0; wanted 1 and 0 or more"):
        alfworld_tasks(ALFWorldSection(), TaskRequest(num_tasks=0))
    with pytest.raises(ConfigError, match=r"task_types = \[\]: wanted some of"):
        ALFWorldSection(task_types=())
    with pytest.raises(ConfigError, match=r"task_types \(an entry of it\) = 'fly': wanted one of"):
        ALFWorldSection(task_types=("fly",))
    with pytest.raises(
        DataError, match="task 'x' lacks problem_seed, split, task_type; make tasks with sod tasks"
    ):
        alfworld_env._game(Task(task_id="x", messages=()))


def test_a_machine_without_alfworld_says_what_to_install(monkeypatch):
    monkeypatch.setattr(alfworld_env, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"alfworld is not installed; run: pip install 'sod-kernels\[alf"):
        build_environment(ALFWorldSection())
    (task,) = alfworld_tasks(ALFWorldSection(), TaskRequest(num_tasks=1))
    with pytest.raises(ConfigError, match="the package alfworld is not installed; it has domain and grammar"):
        alfworld_env._game(task)


@needs_alfworld
@pytest.mark.parametrize("split", SPLITS)
def test_the_expert_solves_every_type(split):
    built = build_environment(ALFWorldSection(invalid_action="impossible"))
    for task in alfworld_tasks(ALFWorldSection(), TaskRequest(num_tasks=6, seed=1, split=split)):
        messages = expert_conversation(built.factory(task), task, max_turns=30)
        assert "Your task is to: " in messages[0]["content"]
        assert len(messages) >= 6


@needs_alfworld
def test_the_planner_goes_on_where_the_plan_was_left():
    section = ALFWorldSection(task_types=("look_at_obj_in_light",))
    (task,) = alfworld_tasks(section, TaskRequest(num_tasks=1, seed=1))
    environment = build_environment(section).factory(task)
    environment.reset()
    environment.step(parse_hermes("<action>look</action>"), ())
    for _ in range(9):
        step = environment.step(parse_hermes(environment.expert_turn()), ())
        if step.is_done:
            break
    assert step.is_success


def test_a_plan_names_what_there_is_and_opens_before_it_takes():
    for task_type in TASK_TYPES:
        for seed in range(20):
            problem = alfworld_problem(task_type, seed)
            things = [one for one, _ in facts(problem.pddl, "objectType")]
            names = set(
                shown_names(things + [one for one, _ in facts(problem.pddl, "receptacleType")]).values()
            )
            for step in problem.plan:
                used = re.findall(r"[a-z]+ \d+", step)
                assert used
                assert set(used) <= names
            takes = sum(step.startswith("take ") for step in problem.plan)
            assert takes == (2 if task_type == "pick_two_obj_and_place" else 1)
            treated = {"clean": "clean ", "heat": "heat ", "cool": "cool "}
            verb = next((verb for kind, verb in treated.items() if f"pick_{kind}_" in task_type), None)
            assert verb is None or any(step.startswith(verb) for step in problem.plan)
            for number, step in enumerate(problem.plan):
                place = step.partition(" from ")[2]
                if place.split(" ")[0] in OPENABLE:
                    assert f"open {place}" in problem.plan[:number]


@needs_alfworld
def test_a_game_tells_what_can_be_done_and_what_cannot():
    (task,) = alfworld_tasks(ALFWorldSection(), TaskRequest(num_tasks=1, seed=4))
    built = build_environment(ALFWorldSection(invalid_action="impossible", invalid_penalty=0.1))
    environment = built.factory(task)
    opening = environment.reset()[0]["content"]
    assert "You are in the middle of a room." in opening
    assert "- go to " in opening
    step = environment.step(parse_hermes("<action>fly to the moon</action>"), ())
    assert step.messages[0]["content"].startswith("Nothing happens.")
    assert step.results[0].is_error
    assert step.reward == -0.1
    environment.close()
