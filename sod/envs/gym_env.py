"""Gymnasium environments whose observations and actions are text, run as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sod.envs.registry import BuiltEnvironment, EnvironmentEntry
from sod.envs.text_game import Observation, TextEnvironment, TextSection
from sod.errors import ConfigError, DataError
from sod.types import Task

GymFactory = Callable[[], Any]
"""Makes a `gymnasium.Env`."""


@dataclass(frozen=True, kw_only=True)
class GymSection(TextSection):
    """A Gymnasium environment with text observations and text actions.

    The score is the sum of the rewards. A task's fields `seed` and `options` are given to `reset`.
    """

    name: str = "gymnasium"
    """Name of the environment."""
    make: str
    """Registered id, as `gymnasium.make` takes it; or "module:Class", or "module:function"."""
    actions_key: str = "admissible_actions"
    """Key of `info` under which the environment lists possible actions, if it does."""
    success_threshold: float = 1.0
    """Score from which on an attempt that has ended counts as solved."""


class GymGame:
    """One attempt in a Gymnasium environment."""

    def __init__(self, env: Any, task: Task, section: GymSection) -> None:
        """Prepare one attempt.

        Args:
            env: A `gymnasium.Env`.
            task: May have `seed` and `options` in its fields.
            section: Settings.
        """
        self._env = env
        self._task = task
        self._section = section
        self._score = 0.0

    def begin(self) -> Observation:
        """Reset the environment."""
        fields = self._task.fields
        text, info = self._env.reset(seed=fields.get("seed"), options=fields.get("options"))
        self._score = 0.0
        return self._observation(text, info, is_done=False)

    def act(self, action: str) -> Observation:
        """Do one step."""
        text, reward, is_terminated, is_truncated, info = self._env.step(action)
        self._score += float(reward)
        return self._observation(text, info, is_done=bool(is_terminated or is_truncated))

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    def _observation(self, text: Any, info: dict[str, Any], *, is_done: bool) -> Observation:
        if not isinstance(text, str):
            raise DataError(
                f"GymGame: {type(self._env.unwrapped).__name__} gave an observation of type "
                f"{type(text).__name__} in task {self._task.task_id!r}; wanted text."
            )
        return Observation(
            text=text,
            actions=tuple(info.get(self._section.actions_key, ())),
            score=self._score,
            is_done=is_done,
            is_success=is_done and self._score >= self._section.success_threshold,
        )


def gym_environment(make: GymFactory, section: GymSection) -> BuiltEnvironment:
    """Make environments of a Gymnasium environment.

    Args:
        make: Makes one, for each attempt.
        section: Settings.

    Returns:
        The environment.

    Raises:
        ConfigError: Observations or actions are no text.
    """
    from gymnasium.spaces import Text

    probe = make()
    try:
        for kind in ("observation", "action"):
            space = getattr(probe, f"{kind}_space", None)
            if not isinstance(space, Text):
                raise ConfigError(
                    f"[environment] make = {section.make!r}: its {kind}s are {space}, wanted "
                    "gymnasium.spaces.Text; wrap it in one that reads and writes text"
                )
    finally:
        probe.close()

    def factory(task: Task) -> TextEnvironment:
        return TextEnvironment(task, GymGame(make(), task, section), section)

    return BuiltEnvironment(factory=factory)


def build(section: GymSection) -> BuiltEnvironment:
    """Build the environment that a section names.

    Args:
        section: Settings.

    Returns:
        The environment.

    Raises:
        ConfigError: Gymnasium is not installed, or there is no such environment of text.
    """
    try:
        import gymnasium
    except ModuleNotFoundError as error:
        raise ConfigError(
            '[environment] name = "gymnasium": the package is not installed; '
            "run: pip install 'sod-kernels[envs]'"
        ) from error
    module_name, _, attribute = section.make.partition(":")
    # The attribute of a registered id ends with a version, which no Python name does.
    if not attribute.isidentifier():
        try:
            gymnasium.spec(section.make)
        except gymnasium.error.Error as error:
            raise ConfigError(f"[environment] make = {section.make!r}: {error}") from error
        return gym_environment(lambda: gymnasium.make(section.make), section)
    try:
        make: GymFactory = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"[environment] make = {section.make!r}: cannot be imported: {error}") from error
    return gym_environment(make, section)


ENTRY = EnvironmentEntry(options=GymSection, build=build)
