"""Settings of distillation from a teacher with another tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, ClassVar, Literal

from sod.config_losses import RewardedSection
from sod.config_schema import Above, AtLeast, AtMost
from sod.errors import ConfigError

_OWNERS = {"delta": "sod", "epsilon": "sod", "min_turns": "atod", "min_divergence": "atod"}
"""Settings that only one of the weights reads."""
_READ_BY = {
    "score": ("simct",),
    "divergence": ("simct",),
    "beta": ("simct",),
    "topk": ("simct", "uld"),
    "mask_first_token": ("simct",),
    "min_teacher_mass": ("simct",),
    "step_divergence": ("simct",),
}
"""Settings that only some of the losses read."""


@dataclass(frozen=True, kw_only=True)
class SimCTSection(RewardedSection):
    """Distillation across tokenizers, over shared tokens and spans of text (arXiv 2605.07711)."""

    needs_equal_ids: ClassVar[bool] = False
    name: Literal["simct"] = "simct"
    """Name of the algorithm."""
    form: Literal["vocab"] = "vocab"
    """Units are compared as distributions, so there is no other form."""
    loss: Literal["simct", "uld", "gold", "alm"] = "simct"
    """What a unit of text gives: the divergence over the shared columns and its span, or for comparison what
    one of the baselines in docs/simct.md gives."""
    score: Literal["log_prob", "logit"] = "log_prob"
    """Score of a span: the paper's mean log-probability, or the mean logit of the released code."""
    unit_filter: Literal["all", "one_to_one"] = "all"
    """"one_to_one" compares only units of one token on each side that share a column."""
    topk: Annotated[int, Above(0)] | None = None
    """Shared columns compared in each unit, the student's likeliest; None for all."""
    align: Literal["minimal", "greedy"] = "minimal"
    """"minimal" cuts units at every common border; "greedy" groups tokens as the released code does."""
    mask_first_token: bool = False
    """Whether the first tokens of a span do not compete with it."""
    min_teacher_mass: Annotated[float, Above(0), AtMost(1)] | None = None
    """Units whose columns hold less of the teacher's probability are left out; None keeps all."""
    weight: Literal["uniform", "sod", "atod"] = "uniform"
    """Step weights: 1 for every step, or those of SOD or ATOD from the divergence of the step's units."""
    step_divergence: Literal["abs_log_ratio", "kl"] = "abs_log_ratio"
    """What a step's divergence averages over its units: |log-ratio| of the unit's text, or the divergence.
    With another loss it averages that."""
    delta: Annotated[float, AtLeast(0)] = 0.2
    """For weight = "sod": a step weight is at most 1 + delta; inf for no bound."""
    epsilon: Annotated[float, Above(0)] = 1e-6
    """For weight = "sod": added to both divergences of the ratio, in nats."""
    min_turns: Annotated[int, Above(0)] = 3
    """For weight = "atod": trajectories of fewer turns keep weight 1."""
    min_divergence: Annotated[float, AtLeast(0)] = 0.01
    """For weight = "atod": trajectories whose largest step divergence is below it, in nats, keep weight 1."""
    bridge: tuple[str, ...] = ()
    """Control tokens that mean the same, student's first, as "<|im_end|> = <|eot_id|>"; empty for the two
    ends of a turn."""
    misaligned: Literal["drop", "stop"] = "drop"
    """Trajectories that cannot be aligned: left out and counted, or the run stops and names the place."""

    @property
    def bridge_pairs(self) -> tuple[tuple[str, str], ...]:
        """`bridge`, taken apart."""
        parts = (entry.partition(" = ") for entry in self.bridge)
        return tuple((student.strip(), teacher.strip()) for student, _, teacher in parts)

    def __post_init__(self) -> None:
        """Check types, ranges and that every setting is read at all."""
        super().__post_init__()
        for item in fields(SimCTSection):
            value, owner = getattr(self, item.name), _OWNERS.get(item.name, self.weight)
            readers = _READ_BY.get(item.name, (self.loss,))
            if self.loss not in readers and value != item.default:
                raise ConfigError(
                    f"[algorithm] {item.name} = {value!r}: belongs to loss = "
                    f"{' or '.join(map(repr, readers))}, but loss = {self.loss!r}; remove one of the two"
                )
            if owner != self.weight and value != item.default:
                raise ConfigError(
                    f'[algorithm] {item.name} = {value!r}: belongs to weight = "{owner}", '
                    f'but weight = "{self.weight}"; remove one of the two'
                )
        if self.min_log_prob is not None:
            raise ConfigError(
                f"[algorithm] min_log_prob = {self.min_log_prob!r}: belongs to algorithms whose student and "
                'teacher share their ids; "simct" has no floor; remove it'
            )
        if self.mask_first_token and self.unit_filter == "one_to_one":
            raise ConfigError(
                '[algorithm] mask_first_token = true: belongs to unit_filter = "all"; without spans there is '
                "nothing to mask; remove one of the two"
            )
        if self.score != "log_prob" and self.unit_filter == "one_to_one":
            raise ConfigError(
                f'[algorithm] score = "{self.score}": belongs to unit_filter = "all"; without spans nothing '
                "is scored by it; remove one of the two"
            )
        for entry, (student, teacher) in zip(self.bridge, self.bridge_pairs, strict=True):
            if not student or not teacher:
                raise ConfigError(
                    f'[algorithm] bridge holds {entry!r}; wanted "STUDENT = TEACHER", the names of two '
                    "control tokens that mean the same"
                )
