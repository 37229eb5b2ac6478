"""TextWorld games: cooking after a recipe, and hunts for a treasure."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from sod.config_schema import AtLeast, AtMost
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry, TaskRequest
from sod.envs.text_game import Observation, TextEnvironment, TextSection, text_instruction
from sod.envs.textworld_games import LIBRARY_LOCK, GameKind, game_file, game_seed, require_textworld
from sod.errors import ConfigError, DataError
from sod.types import Task

_COOKING_ONLY = ("recipe", "take", "rooms", "has_doors", "has_cooking", "has_cutting", "has_limited_hands")
_INSTRUCTION = text_instruction(
    "You are playing a text adventure in a house. Reach the goal that is stated first."
)

_READ = "examine cookbook"
# The interpreter's status line, room and points, that it writes for a screen of fixed width.
_STATUS_LINE = re.compile(r"\n>\s*-= .* =-\S*\s*\Z")
_BLANK_LINES = re.compile(r"\n{3,}")


@dataclass(frozen=True, kw_only=True)
class TextWorldSection(TextSection):
    """A family of TextWorld games; a task says which of them."""

    name: str = "textworld"
    """Name of the environment."""
    cache: Path
    """Folder of game files, made where absent; a game takes 5 to 10 seconds to make, once."""
    game: Literal["cooking", "treasure"] = "cooking"
    """"cooking" prepares and eats a meal after a recipe, "treasure" finds an object in a maze."""
    recipe: Annotated[int, AtLeast(1), AtMost(5)] = 1
    """Ingredients of the recipe."""
    take: Annotated[int, AtLeast(0), AtMost(5)] = 1
    """Of these, the ingredients that are not at hand and must be found."""
    rooms: Literal[1, 6, 9, 12] = 1
    """Rooms of the house."""
    has_doors: bool = False
    """Whether doors and containers must be opened."""
    has_cooking: bool = False
    """Whether ingredients must be cooked."""
    has_cutting: bool = False
    """Whether ingredients must be cut."""
    has_limited_hands: bool = False
    """Whether only a few things can be carried."""
    level: Annotated[int, AtLeast(1), AtMost(30)] = 1
    """Difficulty of a treasure hunt; from 11 on with closed doors, from 21 on with locked ones."""

    def __post_init__(self) -> None:
        """Check types and ranges, and that every setting is read at all."""
        super().__post_init__()
        if self.take > self.recipe:
            raise ConfigError(
                f"[environment] take = {self.take}: wanted at most recipe = {self.recipe}, "
                "since only ingredients of the recipe are taken"
            )
        others = ("level",) if self.game == "cooking" else _COOKING_ONLY
        for key in others:
            value = getattr(self, key)
            if value != type(self).__dataclass_fields__[key].default:
                raise ConfigError(
                    f'[environment] {key} = {value!r}: is not read by game = "{self.game}"; remove it'
                )

    @property
    def settings(self) -> dict[str, Any]:
        """The settings as `tw-make` names them, without split and seed."""
        if self.game == "treasure":
            return {"level": self.level}
        return {
            "recipe": self.recipe,
            "take": self.take,
            "go": self.rooms,
            "open": self.has_doors,
            "cook": self.has_cooking,
            "cut": self.has_cutting,
            "drop": self.has_limited_hands,
        }


def textworld_tasks(request: TaskRequest) -> list[Task]:
    """Make tasks; the environment's settings say what kind of games they are.

    Args:
        request: Which; the splits are "train", "valid" and "test".

    Returns:
        Tasks whose fields hold the `game_seed` and the `split`.

    Raises:
        DataError: If an argument is out of range.
    """
    if request.num_tasks < 1:
        raise DataError(f"textworld_tasks: num_tasks is {request.num_tasks}; ask for at least 1.")
    seed, split = request.seed, request.split
    return [
        Task(
            task_id=f"textworld-{split}-{seed}-{index}",
            messages=({"role": "user", "content": _INSTRUCTION},),
            fields={"game_seed": game_seed(seed, index, split=split), "split": split},
        )
        for index in range(request.first, request.first + request.num_tasks)
    ]


class TextWorldGame:
    """One game file being played."""

    def __init__(self, path: Path) -> None:
        """Start the interpreter.

        Args:
            path: A .z8 file with its .json file beside it.
        """
        import textworld
        from jericho.jericho import UnsupportedGameWarning

        wanted = textworld.EnvInfos(
            description=True,
            objective=True,
            admissible_commands=True,
            policy_commands=True,
            command_templates=True,
            entities=True,
            score=True,
            max_score=True,
            won=True,
            lost=True,
        )
        self._path = path
        with warnings.catch_warnings():
            # The interpreter knows the score of famous games only; that of ours is kept by textworld.
            warnings.simplefilter("ignore", UnsupportedGameWarning)
            self._env: Any = textworld.start(str(path), request_infos=wanted)
        self._state: Any = None
        self._words: frozenset[str] = frozenset()
        self._has_read = False

    def begin(self) -> Observation:
        """Start the game; the goal is told first, then the room."""
        with LIBRARY_LOCK:
            self._state = self._env.reset()
        phrases = (*self._state.command_templates, *self._state.entities)
        self._words = frozenset(" ".join(phrases).lower().split())
        self._has_read = False
        return self._observation(f"{self._state.objective}\n\n{self._state.description}", is_understood=True)

    def act(self, action: str) -> Observation:
        """Do one action; the interpreter also understands some that are not in the list.

        It gets to see words of the game only. It has commands of its own, also in the middle of a line, that
        write and read files ("script", "save", "restore"), and a control character kills the process.
        """
        unknown = [word for word in action.lower().split() if word not in self._words]
        if unknown:
            return self._observation(f"The game does not know the word {unknown[0]!r}.", is_understood=False)
        possible = self._state.admissible_commands
        with LIBRARY_LOCK:
            self._state, _, _ = self._env.step(action)
        self._has_read |= action.lower() == _READ
        return self._observation(self._state.feedback, is_understood=action.lower() in possible)

    def expert_action(self) -> str:
        """Give the next action of the shortest known way to win, after a look at the recipe.

        The library's own way takes the ingredients without having read which they are. Whoever learns from
        that learns to guess, so the cookbook comes first, as soon as it is in reach.

        Returns:
            The action.

        Raises:
            DataError: The game cannot be won any more.
        """
        if not self._has_read and _READ in self._state.admissible_commands:
            return _READ
        plan = self._state.policy_commands
        if not plan:
            raise DataError(f"TextWorldGame: {self._path.name} cannot be won from here; begin it again.")
        return str(plan[0])

    def close(self) -> None:
        """End the interpreter."""
        self._env.close()

    def _observation(self, text: str, *, is_understood: bool) -> Observation:
        state = self._state
        return Observation(
            text=_BLANK_LINES.sub("\n\n", _STATUS_LINE.sub("", text)),
            actions=tuple(state.admissible_commands),
            score=state.score / state.max_score,
            is_done=bool(state.won or state.lost),
            is_success=bool(state.won),
            is_understood=is_understood,
        )


def build(section: TextWorldSection) -> BuiltEnvironment:
    """Build the environment; games are made when they are first asked for.

    Args:
        section: Settings.

    Returns:
        The environment, for tasks of `textworld_tasks`.

    Raises:
        ConfigError: If textworld is not installed.
    """
    require_textworld()

    def factory(task: Task) -> TextEnvironment:
        return TextEnvironment(task, TextWorldGame(_file(section, task)), section)

    return BuiltEnvironment(factory=factory)


def _file(section: TextWorldSection, task: Task) -> Path:
    seed, split = task.fields.get("game_seed"), task.fields.get("split")
    if not isinstance(seed, int) or not isinstance(split, str):
        raise DataError(
            f"textworld: task {task.task_id!r} has game_seed {seed!r} and split {split!r}, wanted an integer "
            "and a name; make tasks with textworld_tasks or sod tasks."
        )
    kind: GameKind = section.game
    settings = section.settings
    if kind == "cooking":
        settings = {**settings, "recipe_seed": seed, "split": split}
    return game_file(kind, settings, seed, cache=section.cache)


def _make_tasks(section: TextWorldSection, request: TaskRequest) -> list[Task]:
    return textworld_tasks(request)


ENTRY = EnvironmentEntry(options=TextWorldSection, build=build, make_tasks=_make_tasks)
