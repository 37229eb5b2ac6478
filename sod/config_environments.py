"""What the settings of environments have in common, and what an algorithm asks of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from sod.config_algorithms import AlgorithmSection, ATODSection
from sod.config_schema import AtLeast, Section
from sod.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class EnvironmentSection(Section):
    """Base of the options of an environment; `sod.envs.registry` knows the environments by name."""

    section: ClassVar[str] = "environment"
    name: str
    """Registered name of the environment, or "module:ENTRY" for one of your own."""


@dataclass(frozen=True, kw_only=True)
class ActionSection(EnvironmentSection):
    """Base of the options of an environment that can tell a turn without a valid action."""

    invalid_penalty: Annotated[float, AtLeast(0)] | None = None
    """Taken off the reward of such a turn; None for what the algorithm brings: 0.1 for "atod", else 0."""


def settle_penalty(
    environment: EnvironmentSection | None, algorithm: AlgorithmSection
) -> EnvironmentSection | None:
    """Put the algorithm's own penalty in where none is set.

    Args:
        environment: Its section; None where a Python caller hands the environment over.
        algorithm: What is trained.

    Returns:
        The section, its `invalid_penalty` a number where it has one.

    Raises:
        ConfigError: If the algorithm lets single turns pay and there is nothing to pay.
    """
    if isinstance(environment, ActionSection) and environment.invalid_penalty is None:
        environment = replace(environment, invalid_penalty=algorithm.invalid_penalty)
    if isinstance(algorithm, ATODSection) and algorithm.penalty_on == "turn" and not penalty_of(environment):
        name = "no section" if environment is None else f'"{environment.name}"'
        raise ConfigError(
            f'[algorithm] penalty_on = "turn": [environment] is {name}, where no turn pays an '
            "invalid_penalty; take a world of text or search_qa with one above 0, or remove penalty_on"
        )
    return environment


def penalty_of(environment: EnvironmentSection | None) -> float:
    """Give what a turn without a valid action pays; 0 where the environment cannot tell one."""
    return (environment.invalid_penalty or 0.0) if isinstance(environment, ActionSection) else 0.0
