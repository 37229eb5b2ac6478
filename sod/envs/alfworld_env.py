"""ALFWorld: household tasks in text, in its own domain and grammar.

Played are the games of its data set where they are on this machine, else problems of our own generator. Both
need the alfworld package, for domain and grammar, and textworld with its planner.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sod.envs.alfworld_problems import SPLITS, TASK_TYPES, TaskType, alfworld_problem, shown_names
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry, TaskRequest
from sod.envs.text_game import Observation, TextEnvironment, TextSection, text_instruction
from sod.envs.textworld_games import LIBRARY_LOCK
from sod.errors import ConfigError, DataError
from sod.types import Task

GAME_FILE = "game.tw-pddl"

_INSTRUCTION = text_instruction(
    "You are a household robot in a room. Find what the task names, go to places, open them, take things, "
    "treat them, put them where they belong."
)
_GOAL_PLACE = "UNKNOWN GOAL"


@dataclass(frozen=True, kw_only=True)
class ALFWorldSection(TextSection):
    """Household tasks of ALFWorld; a task says which."""

    name: str = "alfworld"
    """Name of the environment."""
    data: Path | None = None
    """Folder of the data set, with `train`, `valid_seen`, `valid_unseen`; None for generated problems."""
    task_types: tuple[TaskType, ...] = TASK_TYPES
    """Types of the tasks that are made, in turn."""

    def __post_init__(self) -> None:
        """Check types, and that there is a task type at all."""
        super().__post_init__()
        if not self.task_types:
            raise ConfigError(f"[environment] task_types = []: wanted some of {', '.join(TASK_TYPES)}")


class PDDLGame:
    """One game in PDDL being played."""

    def __init__(self, data: Mapping[str, str], name: str, plan: Sequence[str] = ()) -> None:
        """Load the game.

        Args:
            data: `pddl_domain`, `pddl_problem` and `grammar`.
            name: Of the task, for errors.
            plan: Actions that solve it from the beginning; empty where nobody knows them.
        """
        import textworld
        from textworld.envs.pddl import PddlEnv

        wanted = textworld.EnvInfos(admissible_commands=True, won=True)
        self._name = name
        self._plan = tuple(plan)
        self._done: list[str] = []
        self._env: Any = PddlEnv(wanted)
        with LIBRARY_LOCK:
            self._env.load(dict(data))
        for identifier, shown in shown_names([info.id for info in self._entities()]).items():
            self._env._entity_infos[identifier].name = shown
        self._state: Any = None

    def begin(self) -> Observation:
        """Start the game; the room is described, then the task."""
        with LIBRARY_LOCK:
            self._state = self._env.reset()
        self._done = []
        # The banner of the grammar says nothing.
        text = str(self._state.feedback).partition("=-")[2] or str(self._state.feedback)
        return self._observation(text.strip(), is_understood=True)

    def act(self, action: str) -> Observation:
        """Do one action; nothing happens at one that is not possible."""
        possible = self._state.admissible_commands
        with LIBRARY_LOCK:
            self._state, _, _ = self._env.step(action)
        self._done.append(action)
        return self._observation(str(self._state.feedback), is_understood=action in possible)

    def expert_action(self) -> str:
        """Give the next action of the plan; where there is none, or it was left, let the planner find one.

        The planner searches exhaustively: in a room full of things that may take minutes.

        Returns:
            The action.

        Raises:
            DataError: The task cannot be solved from here.
        """
        known = self._plan[: len(self._done)]
        if len(known) < len(self._plan) and known == tuple(self._done):
            return self._plan[len(known)]
        plan = self._env._pddl_state.replan(self._env._entity_infos)
        if not plan:
            raise DataError(f"PDDLGame: task {self._name!r} cannot be solved from here; begin it again.")
        return str(plan[0])

    def close(self) -> None:
        """Do nothing: the game is memory only."""
        self._env.close()

    def _entities(self) -> Sequence[Any]:
        return list(self._env._entity_infos.values())

    def _observation(self, text: str, *, is_understood: bool) -> Observation:
        is_won = bool(self._state.won)
        return Observation(
            text=text,
            actions=tuple(self._state.admissible_commands),
            score=float(is_won),
            is_done=is_won,
            is_success=is_won,
            is_understood=is_understood,
        )


def alfworld_tasks(section: ALFWorldSection, request: TaskRequest) -> list[Task]:
    """Make tasks: games of the data set in an order that the seed decides, or generated problems.

    Args:
        section: Settings.
        request: Which; the splits are "train", "valid_seen" and "valid_unseen".

    Returns:
        Tasks whose fields hold the `game_file`, or the `problem_seed` with `split`; and the `task_type`.

    Raises:
        DataError: If an argument is out of range, or there are not so many games.
    """
    if request.num_tasks < 1 or request.first < 0:
        raise DataError(
            f"alfworld_tasks: num_tasks is {request.num_tasks} and first {request.first}; wanted 1 and 0 or "
            "more."
        )
    if request.split not in SPLITS:
        raise DataError(f"alfworld_tasks: split is {request.split!r}; choose one of {', '.join(SPLITS)}.")
    indices = range(request.first, request.first + request.num_tasks)
    if section.data is None:
        rows = [_generated_fields(section, request, index) for index in indices]
    else:
        games = _games(section.data / request.split, section.task_types)
        random.Random(f"order:{request.seed}").shuffle(games)  # noqa: S311 - not for secrets
        if len(games) < indices.stop:
            raise DataError(
                f"alfworld_tasks: {indices.stop} games asked for, but {section.data / request.split} has "
                f"{len(games)} of these types that can be solved."
            )
        rows = games[indices.start : indices.stop]
    return [
        Task(
            task_id=f"alfworld-{request.split}-{request.seed}-{index}",
            messages=({"role": "user", "content": _INSTRUCTION},),
            fields=fields,
        )
        for index, fields in zip(indices, rows, strict=True)
    ]


def build(section: ALFWorldSection) -> BuiltEnvironment:
    """Build the environment.

    Args:
        section: Settings.

    Returns:
        The environment, for tasks of `alfworld_tasks`.

    Raises:
        ConfigError: alfworld, textworld or its planner is not installed.
    """
    for module in ("alfworld", "textworld", "fast_downward"):
        if find_spec(module) is None:
            raise ConfigError(
                f'[environment] name = "alfworld": the package {module} is not installed; run: '
                "pip install 'sod-kernels[alfworld]' (its planner is compiled, which takes some minutes)"
            )

    def factory(task: Task) -> TextEnvironment:
        return TextEnvironment(task, _game(task), section)

    return BuiltEnvironment(factory=factory)


def _generated_fields(section: ALFWorldSection, request: TaskRequest, index: int) -> dict[str, Any]:
    task_type = section.task_types[index % len(section.task_types)]
    seed = request.seed * 1_000_003 + index
    return {"problem_seed": seed, "split": request.split, "task_type": task_type}


def _games(folder: Path, task_types: Sequence[str]) -> list[dict[str, Any]]:
    """The solvable games below a folder, in the order of their paths."""
    if not folder.is_dir():
        raise DataError(f"alfworld_tasks: {folder} does not exist; [environment] data names its parent.")
    games = []
    for path in sorted(folder.rglob(GAME_FILE)):
        description = path.with_name("traj_data.json")
        # ALFWorld leaves these out too: its domain has no sliced things and no movable receptacles.
        if "movable" in str(path) or "Sliced" in str(path) or not description.is_file():
            continue
        task_type = _json(description).get("task_type")
        if task_type in task_types and _json(path).get("solvable"):
            games.append({"game_file": str(path), "task_type": task_type})
    return games


def _game(task: Task) -> PDDLGame:
    fields = task.fields
    if "game_file" in fields:
        data = _json(Path(fields["game_file"]))
        kept = {key: data[key] for key in ("pddl_domain", "pddl_problem", "grammar")}
        return PDDLGame(kept, task.task_id, data.get("walkthrough") or ())
    missing = [key for key in ("problem_seed", "split", "task_type") if key not in fields]
    if missing:
        raise DataError(
            f"alfworld: task {task.task_id!r} lacks {', '.join(missing)}; make tasks with sod tasks."
        )
    problem = alfworld_problem(fields["task_type"], fields["problem_seed"], split=fields["split"])
    folder = _package_folder() / "data"
    grammar = (folder / "alfred.twl2").read_text(encoding="utf-8")
    data = {
        "pddl_domain": (folder / "alfred.pddl").read_text(encoding="utf-8"),
        "pddl_problem": problem.pddl,
        "grammar": grammar.replace(_GOAL_PLACE, problem.sentence),
    }
    return PDDLGame(data, task.task_id, problem.plan)


def _package_folder() -> Path:
    spec = find_spec("alfworld")
    if spec is None or spec.origin is None:
        raise ConfigError("alfworld: the package alfworld is not installed; it has domain and grammar.")
    return Path(spec.origin).parent


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"alfworld: {path} cannot be read: {error}") from error


ENTRY = EnvironmentEntry(options=ALFWorldSection, build=build, make_tasks=alfworld_tasks)
