"""Baselines of `unit_kl` in its frame: ULD, GOLD and ALM over the same units, with the same output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import Tensor

from sod_kernels._checks.values import check_choice, check_count, check_number
from sod_kernels.functional.options import Weighting
from sod_kernels.functional.unit_frame import UnitFrame, frame_options
from sod_kernels.functional.units import unit_kl
from sod_kernels.reference import unit_baselines as formulas
from sod_kernels.unit_types import UnitKLOutput
from sod_kernels.units import Units, VocabMap

_CHUNK_DIVERGENCES = ("forward_kl", "reverse_kl", "total_variation")


def uld_unit_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    units: Units,
    vocab_map: VocabMap,
    *,
    student_ids: Tensor,
    teacher_ids: Tensor,
    topk: int | None = None,
    step_ids: Tensor | None = None,
    temperature: float = 1.0,
    unit_filter: str | None = "one_to_one",
    student_vocab_size: int | None = None,
    teacher_vocab_size: int | None = None,
    response_mask: Tensor | None = None,
    step_trajectory: Tensor | None = None,
    num_steps: int | None = None,
    weighting: Weighting = None,
    token_weights: Tensor | None = None,
    reduction: str = "token_mean",
    denominator: float | Tensor | None = None,
    backend: str = "auto",
) -> UnitKLOutput:
    r"""Compare sorted probabilities: the universal logit distillation loss.

    With p and q the probabilities of student and teacher over their whole vocabularies, largest first and the
    narrower one filled up with zeros:

    .. math:: D_u = \sum_i \left| p_{(i)} - q_{(i)} \right|

    A span enters as the distribution after its first tokens, times their probability, as in `gold_unit_loss`.
    What this does not see: which token has which probability. Two sides that are sure of opposite things do
    not differ. Time O(V log V) and memory O(V) per unit.

    Args:
        student_logits: (N, V) packed, as in `unit_kl`.
        teacher_logits: (M, V of the teacher), as in `unit_kl`.
        units: As in `unit_kl`.
        vocab_map: As in `unit_kl`; which units are 1:1 is read from it.
        student_ids: As in `unit_kl`.
        teacher_ids: As in `unit_kl`.
        topk: Compare this many of the largest probabilities and the rest as one more, None for all.
        step_ids: As in `unit_kl`.
        temperature: Divides all logits, above 0.
        unit_filter: "one_to_one" (the published form, which has nothing for spans) or None (TRL's extended).
        student_vocab_size: As in `unit_kl`.
        teacher_vocab_size: As in `unit_kl`.
        response_mask: As in `unit_kl`.
        step_trajectory: As in `unit_kl`.
        num_steps: As in `unit_kl`.
        weighting: As in `unit_kl`; a step's divergence is the mean of this loss over its units.
        token_weights: As in `unit_kl`.
        reduction: As in `unit_kl`.
        denominator: As in `unit_kl`.
        backend: As in `step_kl`: what measures the tokens of spans; the rest is plain torch.

    Returns:
        As of `unit_kl`, with this loss as `unit_kl`; the entropy is that of the student over its whole
        vocabulary at the unit's last row.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        ULD, arXiv 2402.12030. Deviations: positions are paired by units, not by counting tokens on both
        sides; the cross-entropy that the paper adds is the caller's; `topk` is that of SimCT's comparison
        (1024 there, with a factor of 1.5).
    """
    if topk is not None:
        check_count("uld_unit_loss", "topk", topk, at_least=1)
    frame = UnitFrame(
        frame_options(
            "uld_unit_loss",
            "reverse_kl",
            None,
            temperature,
            weighting,
            token_weights,
            reduction,
            denominator,
            backend,
        ),
        (student_logits, teacher_logits),
        (student_ids, teacher_ids),
        (student_vocab_size, teacher_vocab_size),
        units,
        vocab_map,
        unit_filter,
        {
            "step_ids": step_ids,
            "response_mask": response_mask,
            "step_trajectory": step_trajectory,
            "num_steps": num_steps,
        },
    )
    student, teacher, entropy = frame.merged_rows()
    return frame.finish(formulas.sorted_distance(student.exp(), teacher.exp(), topk), entropy)


def gold_unit_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    units: Units,
    vocab_map: VocabMap,
    *,
    student_ids: Tensor,
    teacher_ids: Tensor,
    beta: float = 0.5,
    matched_weight: float | None = None,
    step_ids: Tensor | None = None,
    temperature: float = 1.0,
    unit_filter: str | None = None,
    student_vocab_size: int | None = None,
    teacher_vocab_size: int | None = None,
    response_mask: Tensor | None = None,
    step_trajectory: Tensor | None = None,
    num_steps: int | None = None,
    weighting: Weighting = None,
    token_weights: Tensor | None = None,
    reduction: str = "token_mean",
    denominator: float | Tensor | None = None,
    backend: str = "auto",
) -> UnitKLOutput:
    r"""Compare merged distributions: paired columns by divergence, all others by rank.

    A unit of k tokens enters as the distribution of its last row times the probability of the tokens before:

    .. math:: p_u(v) = p(v \mid v_{<k}) \prod_{j<k} p(v_j)

    on either side, over the whole vocabulary and not normalised again. With C paired columns of the
    teacher's V and :math:`w = C / V`:

    .. math:: D_u = w \, \mathrm{JSD}_\beta(p_u, q_u)_{paired}
        + (1 - w) \sum_i |p_{u,(i)} - q_{u,(i)}|_{others}

    What this does not see: whether the text after the unit's first tokens could have been reached another
    way, which a span column does; and of columns that are not paired, which one is which. Memory O(V) per
    unit.

    Args:
        student_logits: (N, V) packed, as in `unit_kl`.
        teacher_logits: (M, V of the teacher), as in `unit_kl`.
        units: As in `unit_kl`.
        vocab_map: As in `unit_kl`.
        student_ids: As in `unit_kl`.
        teacher_ids: As in `unit_kl`.
        beta: Weight of the teacher in [0, 1], as of the "jsd" of `step_kl`.
        matched_weight: w in [0, 1] instead of C / V; 1 leaves out what is not paired.
        step_ids: As in `unit_kl`.
        temperature: Divides all logits, above 0.
        unit_filter: As in `unit_kl`.
        student_vocab_size: As in `unit_kl`.
        teacher_vocab_size: As in `unit_kl`.
        response_mask: As in `unit_kl`.
        step_trajectory: As in `unit_kl`.
        num_steps: As in `unit_kl`.
        weighting: As in `unit_kl`; a step's divergence is the mean of this loss over its units.
        token_weights: As in `unit_kl`.
        reduction: As in `unit_kl`.
        denominator: As in `unit_kl`.
        backend: As in `step_kl`: what measures the tokens of spans; the rest is plain torch.

    Returns:
        As of `unit_kl`, with this loss as `unit_kl`; the entropy is that of the student over its whole
        vocabulary at the unit's last row.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        GOLD of TRL (`trl.experimental.gold`), hybrid form with its "bayesian" merge, read in July 2026.
        Deviations: columns are paired by bytes, not by the tokens' strings; the end of the text is compared
        as the map says, TRL leaves it out; TRL divides by the units of a sample, here `reduction` decides.
        Its other merge, the default there, reads rows that are off by one, and is not offered.
    """
    if (
        matched_weight is not None
        and check_number("gold_unit_loss", "matched_weight", matched_weight, at_least=0.0) > 1.0
    ):
        raise ValueError(f"gold_unit_loss: matched_weight={matched_weight!r}; wanted a weight, at most 1.")
    frame = UnitFrame(
        frame_options(
            "gold_unit_loss",
            "jsd",
            beta,
            temperature,
            weighting,
            token_weights,
            reduction,
            denominator,
            backend,
        ),
        (student_logits, teacher_logits),
        (student_ids, teacher_ids),
        (student_vocab_size, teacher_vocab_size),
        units,
        vocab_map,
        unit_filter,
        {
            "step_ids": step_ids,
            "response_mask": response_mask,
            "step_trajectory": step_trajectory,
            "num_steps": num_steps,
        },
    )
    student, teacher, entropy = frame.merged_rows()
    columns = (vocab_map.student_columns, vocab_map.teacher_columns)
    spec = frame.options.spec(1)
    matched = formulas.merged_divergence(student, teacher, columns, spec.divergence, spec.beta)
    weight = vocab_map.num_shared / teacher.shape[-1] if matched_weight is None else matched_weight
    if weight == 1.0:
        return frame.finish(matched, entropy)
    distance = formulas.sorted_distance(
        formulas.without_columns(student, columns[0]), formulas.without_columns(teacher, columns[1]), None
    )
    return frame.finish(weight * matched + (1.0 - weight) * distance, entropy)


def alm_unit_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    units: Units,
    vocab_map: VocabMap,
    *,
    student_ids: Tensor,
    teacher_ids: Tensor,
    divergence: str = "forward_kl",
    chunk_temperature: float | None = None,
    step_ids: Tensor | None = None,
    temperature: float = 1.0,
    unit_filter: str | None = None,
    student_vocab_size: int | None = None,
    teacher_vocab_size: int | None = None,
    response_mask: Tensor | None = None,
    step_trajectory: Tensor | None = None,
    num_steps: int | None = None,
    weighting: Weighting = None,
    token_weights: Tensor | None = None,
    reduction: str = "token_mean",
    denominator: float | Tensor | None = None,
    backend: str = "auto",
) -> UnitKLOutput:
    r"""Compare the likelihoods of what was written: approximate likelihood matching.

    With :math:`\ell_s = \sum_j \log p(v_j)` of a unit's tokens and :math:`\ell_t` the teacher's, the
    probabilities :math:`\exp(\ell / \tau_c)` and their opposites are two distributions over two events,
    compared by the chosen divergence. As :math:`\tau_c` grows, :math:`\tau_c` times the forward KL goes to

    .. math:: D_u = (\ell_t - \ell_s) + \ell_t \log (\ell_s / \ell_t)

    What this does not see: any token but those that were written. Memory O(1) per unit.

    Args:
        student_logits: (N, V) packed, as in `unit_kl`.
        teacher_logits: (M, V of the teacher), as in `unit_kl`.
        units: As in `unit_kl`.
        vocab_map: As in `unit_kl`; which units are 1:1 is read from it.
        student_ids: As in `unit_kl`.
        teacher_ids: As in `unit_kl`.
        divergence: "forward_kl" (teacher to student), "reverse_kl" or "total_variation".
        chunk_temperature: tau_c, above 0; None for the limit, the paper's choice in practice.
        step_ids: As in `unit_kl`.
        temperature: Divides all logits, above 0; another thing than the former.
        unit_filter: As in `unit_kl`.
        student_vocab_size: As in `unit_kl`.
        teacher_vocab_size: As in `unit_kl`.
        response_mask: As in `unit_kl`.
        step_trajectory: As in `unit_kl`.
        num_steps: As in `unit_kl`.
        weighting: As in `unit_kl`; a step's divergence is the mean of this loss over its units.
        token_weights: As in `unit_kl`.
        reduction: As in `unit_kl`.
        denominator: As in `unit_kl`.
        backend: As in `step_kl`: what measures the tokens of spans; the rest is plain torch.

    Returns:
        As of `unit_kl`, with this loss as `unit_kl`; the entropy is that of the student over its whole
        vocabulary at the unit's last row.

    Raises:
        TypeError: If an argument has the wrong type or dtype.
        ValueError: If a shape, device, value or combination is wrong.
        BackendUnavailableError: If the backend cannot run here.

    Source:
        ALM, arXiv 2503.20083. Deviations: every minimal unit is compared, none is left out for a bias of the
        tokenisers; the limit's factor tau_c is missing at a finite one, as in the published code;
        log-probabilities above -1e-6 count as that.
    """
    check_choice("alm_unit_loss", "divergence", divergence, _CHUNK_DIVERGENCES)
    if chunk_temperature is not None:
        check_number("alm_unit_loss", "chunk_temperature", chunk_temperature, above=0.0)
    frame = UnitFrame(
        frame_options(
            "alm_unit_loss",
            "reverse_kl",
            None,
            temperature,
            weighting,
            token_weights,
            reduction,
            denominator,
            backend,
        ),
        (student_logits, teacher_logits),
        (student_ids, teacher_ids),
        (student_vocab_size, teacher_vocab_size),
        units,
        vocab_map,
        unit_filter,
        {
            "step_ids": step_ids,
            "response_mask": response_mask,
            "step_trajectory": step_trajectory,
            "num_steps": num_steps,
        },
    )
    (student, entropy), (teacher, _) = frame.paths()
    loss = formulas.binary_divergence(student, teacher, divergence, chunk_temperature)
    return frame.finish(loss, entropy, paths=(student.detach(), teacher))


# Losses over units by name, all called alike: logits, units, map, ids, and the keywords that they share.
CROSS_TOKENIZER_LOSSES: Mapping[str, Callable[..., UnitKLOutput]] = MappingProxyType(
    {
        "simct": unit_kl,
        "simple_opd": partial(unit_kl, unit_filter="one_to_one"),
        "uld": uld_unit_loss,
        "gold": gold_unit_loss,
        "alm": alm_unit_loss,
    }
)
