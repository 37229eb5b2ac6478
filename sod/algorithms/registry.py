"""Step weights of other packages, by the name that they registered."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from sod.algorithms.step_weights import StepWeight
from sod.errors import ConfigError

GROUP = "sod.step_weights"
"""Entry-point group in which a package registers its functions of a `StepContext`."""


def step_weight(name: str) -> StepWeight:
    """Look a step weight up.

    Args:
        name: What a package registered in the entry-point group `GROUP`, or "module:FUNCTION".

    Returns:
        A function from `StepContext` to (S,) weights.

    Raises:
        ConfigError: If there is none of that name, it cannot be imported, or is no function.
    """
    try:
        found = _load(name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"[algorithm] weight = {name!r}: cannot be imported: {error}") from error
    if not callable(found):
        raise ConfigError(
            f"[algorithm] weight = {name!r}: wanted a function of a StepContext, got {type(found).__name__}"
        )
    return cast(StepWeight, found)


def _load(name: str) -> Any:
    module, separator, attribute = name.partition(":")
    if separator:
        return getattr(import_module(module), attribute)
    known: dict[str, EntryPoint] = {each.name: each for each in entry_points(group=GROUP)}
    if name not in known:
        close = get_close_matches(name, known, n=1, cutoff=0.6)
        listed = f"registered: {', '.join(known) or 'none'}; or give 'module:FUNCTION'"
        raise ConfigError(
            f"[algorithm] weight = {name!r}: unknown; {f'did you mean {close[0]!r}?' if close else listed}"
        )
    return known[name].load()
