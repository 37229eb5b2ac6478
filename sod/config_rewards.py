"""Settings of `[reward]`: what is added to, or taken from, what the environment gives an attempt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sod.config_schema import Above, AtLeast, Section
from sod.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RewardSection(Section):
    """Shaping of the rewards that training sees; evaluation counts what the environment gives.

    The terms apply in the order of the fields. docs/rewards.md has the settings of SOD's release.
    """

    section: ClassVar[str] = "reward"
    wrong_score: float = 0.0
    """What an attempt that earned 0 gets instead."""
    answer_format: Literal["any", "answered", "boxed", "code"] = "any"
    """Form of a final answer: "answered" wants one, "boxed" a closed \\boxed{}, "code" a Python block."""
    malformed_score: float | None = None
    """What an attempt without that form gets, in place of what it earned; only with an `answer_format`."""
    tool_bonus: Annotated[float, AtLeast(0)] = 0.0
    """Added to a score below 0 for every turn whose call reached a tool."""
    tool_bonus_ceiling: float | None = None
    """Most that a score below 0 becomes by the bonus; only with a `tool_bonus`, below 0."""
    overlong_limit: Annotated[int, Above(0)] | None = None
    """Tokens after the prompt, observations included, at which the penalty is whole; None for no penalty."""
    overlong_buffer: Annotated[int, Above(0)] | None = None
    """Tokens before the limit over which the penalty grows linearly from 0."""
    overlong_penalty: Annotated[float, Above(0)] = 1.0
    """What the score loses at the limit; beyond it, more in proportion."""

    def __post_init__(self) -> None:
        """Check types, ranges and that every setting is read.

        Raises:
            ConfigError: For a setting that another one makes void.
        """
        super().__post_init__()
        self._check_pair(
            "malformed_score",
            self.malformed_score is not None,
            'answer_format = "boxed"',
            self.answer_format != "any",
        )
        self._check_pair(
            "tool_bonus_ceiling", self.tool_bonus_ceiling is not None, "tool_bonus = 0.1", self.tool_bonus > 0
        )
        if self.tool_bonus_ceiling is not None and self.tool_bonus_ceiling >= 0:
            raise ConfigError(
                f"[reward] tool_bonus_ceiling = {self.tool_bonus_ceiling!r}: wanted a value below 0, or a "
                "wrong attempt that calls tools would be as good as a right one"
            )
        self._check_pair(
            "overlong_buffer",
            self.overlong_buffer is not None,
            "overlong_limit = 20480",
            self.overlong_limit is not None,
        )
        if self.overlong_limit is None and self.overlong_penalty != 1.0:
            raise ConfigError(
                "[reward] overlong_penalty is read with overlong_limit only; set both or neither"
            )
        if self.overlong_limit is not None and (self.overlong_buffer or 0) > self.overlong_limit:
            raise ConfigError(
                f"[reward] overlong_buffer = {self.overlong_buffer}: wanted at most overlong_limit = "
                f"{self.overlong_limit}"
            )

    @staticmethod
    def _check_pair(key: str, has_key: bool, other: str, has_other: bool) -> None:
        if has_key != has_other:
            raise ConfigError(
                f"[reward] {key} and {other.partition(' ')[0]} belong together (for example {other}); set "
                "both or neither"
            )
