"""What the modules of the family share: they hold the options of a function, the batch is the argument."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from sod_kernels import _categories
from sod_kernels._checks import arguments, hidden, shards, unit_kl, values, weightings
from sod_kernels._checks.single_sweep import check_known_weights, check_single_sweep


class OptionsModule(nn.Module):
    """Check options when a module is made, keep them, show those that are not the defaults.

    Attributes:
        options: By name, as they were given.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        """Take the options.

        Args:
            given: `locals()` at the beginning of the `__init__` that names them.

        Raises:
            TypeError: If an option has the wrong type.
            ValueError: If an option has a wrong value.
        """
        super().__init__()
        parameters = inspect.signature(given["__class__"]).parameters.values()
        self._defaults = {each.name: each.default for each in parameters}
        self.options = {name: given[name] for name in self._defaults}
        _check(type(self).__name__, self.options)

    def extra_repr(self) -> str:
        """Show the options that differ from their defaults.

        Returns:
            Such as "divergence='jsd', beta=0.3".
        """
        shown = (pair for pair in self.options.items() if pair[1] != self._defaults[pair[0]])
        return ", ".join(f"{name}={value!r}" for name, value in shown)


def _check(module: str, options: dict[str, Any]) -> None:
    """Check the options that there are."""
    arguments.check_divergence(
        module, options["divergence"], options["beta"], options["temperature"], options.get("min_log_prob")
    )
    arguments.check_options(module, options["step_divergence"], options["reduction"], options["backend"])
    weightings.check_weighting(module, options["weighting"], may_be_tensor=False)
    for name in ("vocab_size", "student_vocab_size", "teacher_vocab_size"):
        if options.get(name) is not None:
            values.check_count(module, name, options[name], at_least=1)
    if "tail" in options:
        values.check_choice(module, "tail", options["tail"], _categories.TAILS)
    if options.get("process_group") is not None:
        shards.check_group(module, options["process_group"])
    if "chunk_size" in options:
        hidden.check_mode(module, options["single_sweep"], options["reduction"], options["chunk_size"])
    elif "single_sweep" in options:
        check_single_sweep(module, options["single_sweep"], options["reduction"])
        given = (options["weighting"], options["process_group"])
        check_known_weights(module, options["single_sweep"], *given)
    if "kl_coefficient" in options:
        hidden.check_coefficients(module, options["kl_coefficient"], options["entropy_coefficient"])
    if "score" in options:
        names = ("score", "unit_filter", "topk", "mask_first_token", "min_teacher_mass")
        unit_kl.check_unit_options(module, **{name: options[name] for name in names}, num_shared=None)
    for model in ("student", "teacher", "reference"):
        if f"{model}_softcap" in options:
            pair = (options[f"{model}_logit_scale"], options[f"{model}_softcap"])
            hidden.check_scales(module, **{model: pair})
