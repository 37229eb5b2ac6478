"""What the functions from hidden states share: steps on the host, flat inputs, and the mode that runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from sod_kernels import _parallel
from sod_kernels._categories import TeacherList
from sod_kernels._checks import hidden as checks
from sod_kernels._checks import shards
from sod_kernels._layout import StepLayout, resolve_layout
from sod_kernels._parallel import Shard
from sod_kernels.functional.options import Options
from sod_kernels.linear.heads import Head
from sod_kernels.linear.inputs import LinearInputs, LinearOptions
from sod_kernels.linear.modes import (
    Batch,
    Loss,
    is_known_in_time,
    optional_float,
    run_double,
    run_single,
)
from sod_kernels.linear.policy import PolicyGradient
from sod_kernels.linear.rows import to_device
from sod_kernels.types import StepKLOutput


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkOptions:
    """What the functions from hidden states let their caller choose besides `Options`.

    Attributes:
        policy_gradient: Policy term, or None.
        kl_coefficient: Factor of the divergence.
        entropy_coefficient: Factor of the entropy that the loss rewards.
        single_sweep: Whether the loss alone is differentiable.
        chunk_size: Most rows that are projected together, or None.
    """

    policy_gradient: PolicyGradient | None
    kl_coefficient: float
    entropy_coefficient: float
    single_sweep: bool
    chunk_size: int | None

    def check(self, options: Options) -> None:
        """Check everything that needs no tensor.

        Args:
            options: Of the same call.

        Raises:
            TypeError: For a wrong type.
            ValueError: For a wrong number, or a loss per token in a single sweep.
        """
        checks.check_mode(options.function, self.single_sweep, options.reduction, self.chunk_size)
        checks.check_coefficients(options.function, self.kl_coefficient, self.entropy_coefficient)


class Steps(NamedTuple):
    """Steps where they were given (or on the CPU), and their ids where the hidden states are."""

    layout: StepLayout
    ids: Tensor


def resolve_steps(
    options: Options,
    hidden: Tensor,
    *,
    step_ids: Tensor | None,
    response_mask: Tensor | None,
    step_trajectory: Tensor | None,
    num_steps: int | None,
) -> Steps:
    """Work out the steps, on the host if they were given there.

    Args:
        options: Function and weighting are read.
        hidden: The student's, (N, H) or (B, T, H), for leading shape and device.
        step_ids: As given, like those below.
        response_mask: In place of step ids.
        step_trajectory: (S,) trajectory of each step.
        num_steps: S.

    Returns:
        The steps.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or id, or ids that would have to be fetched where that is
            impossible.
    """
    given = step_ids if step_ids is not None else response_mask
    is_on_host = not isinstance(given, Tensor) or given.device.type == "cpu"
    # Stands for logits of the batch, of which only leading shape and device are looked at.
    like = torch.empty((), device="cpu" if is_on_host else hidden.device).expand(hidden.shape)
    layout = resolve_layout(
        options.function,
        like,
        step_ids=step_ids,
        response_mask=response_mask,
        step_trajectory=step_trajectory,
        num_steps=num_steps,
        weighting=options.weighting,
    )
    checks.check_may_plan(options.function, layout.step_ids)
    return Steps(layout, to_device(layout.step_ids, hidden.device))


def resolve_heads(
    function: str, heads: dict[str, Head], vocab_size: int | None, group: dist.ProcessGroup | None
) -> Shard:
    """Check heads and work out which rows of the weights this rank holds: all of them without a group.

    Args:
        function: Name for messages.
        heads: By model, the student's first.
        vocab_size: Valid rows of the whole vocabulary, None for all.
        group: All R ranks, of which rank r holds rows r V / R and on of every weight and bias; or None.

    Returns:
        The shard.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For wrong heads, or shards that do not fit together.
    """
    if group is None:
        width = checks.check_heads(function, heads, vocab_size)
        return Shard(first=0, width=width, vocab_size=width, group=None)
    checks.check_heads(function, heads, 1)
    shards.check_group(function, group)
    widths = {f"{model}_weight": head.weight.shape[0] for model, head in heads.items()}
    num_shards = dist.get_world_size(group)
    total = shards.check_shard_widths(function, widths, vocab_size, num_shards, unit="rows")
    student = heads["student"]
    width = student.weight.shape[0]
    logits = student.hidden[..., :1].expand(*student.hidden.shape[:-1], width)
    shards.check_ranks_agree(function, logits, group, got="student_hidden and student_weight make logits of")
    return _parallel.shard_of(width, total, group)


def run(
    options: Options,
    chunks: ChunkOptions,
    heads: dict[str, Head],
    steps: Steps,
    sampled_ids: Tensor | None,
    shard: Shard,
    *,
    lists: TeacherList | None = None,
    tail: str | None = None,
) -> StepKLOutput:
    """Run the mode that the options and the weighting ask for.

    Args:
        options: Checked.
        chunks: Checked.
        heads: Checked head of the student, and of teacher and reference where they have one.
        steps: From `resolve_steps`.
        sampled_ids: Checked, or None.
        shard: The rows of the weights that this rank holds.
        lists: Of a teacher without a head.
        tail: As in `topk_step_kl`, with lists.

    Returns:
        The output.
    """
    checks.check_policy(options.function, chunks.policy_gradient, PolicyGradient, sampled_ids, steps.ids)
    if sampled_ids is not None:
        # Ids of lists, and so those beside them, count in the whole vocabulary.
        sampled_ids = sampled_ids.detach().to(torch.int64).reshape(-1)
        sampled_ids = _parallel.local_ids(sampled_ids, shard) if lists is None else sampled_ids
    inputs = _inputs(heads, steps, sampled_ids, lists)
    sweep = _sweep_options(options, heads, steps, inputs, shard)
    sweep = sweep._replace(chunk_size=chunks.chunk_size or 0, tail=tail)
    trajectory = steps.layout.trajectory
    batch = Batch(inputs, sweep, steps.ids, to_device(trajectory, steps.ids.device), trajectory)
    loss = Loss(
        chunks.policy_gradient,
        float(chunks.kl_coefficient),
        float(chunks.entropy_coefficient),
        options.step_divergence,
        options.weighting,
        options.token_weights,
        options.reduction,
        _scalar(options.denominator, batch),
    )
    if chunks.single_sweep and is_known_in_time(options.weighting):
        return run_single(batch, loss)
    return run_double(batch, loss, is_detached=chunks.single_sweep)


def _scalar(denominator: float | Tensor | None, batch: Batch) -> Tensor | None:
    device = batch.ids.device
    if denominator is None:
        return None
    if isinstance(denominator, Tensor):
        return to_device(denominator.detach(), device)
    return torch.full((), denominator, dtype=batch.inputs.dtype, device=device)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _inputs(
    heads: dict[str, Head], steps: Steps, sampled_ids: Tensor | None, lists: TeacherList | None
) -> LinearInputs:
    """Flatten the leading shape, cut everybody but the student off the graph."""
    student = heads["student"]
    others = {
        f"{model}_{name}": None if value is None else value.detach()
        for model, head in heads.items()
        if model != "student"
        for name, value in (("hidden", _flat(head.hidden)), ("weight", head.weight), ("bias", head.bias))
    }
    return LinearInputs(
        student_hidden=_flat(student.hidden),
        student_weight=student.weight,
        student_bias=student.bias,
        teacher_hidden=others.get("teacher_hidden"),
        teacher_weight=others.get("teacher_weight"),
        teacher_bias=others.get("teacher_bias"),
        reference_hidden=others.get("reference_hidden"),
        reference_weight=others.get("reference_weight"),
        reference_bias=others.get("reference_bias"),
        step_ids=steps.layout.step_ids.reshape(-1),
        sampled_ids=sampled_ids,
        teacher_log_probs=None if lists is None else _flat(lists.log_probs),
        teacher_ids=None if lists is None else _flat(lists.ids),
        teacher_tail=None if lists is None else lists.tail.reshape(-1),
    )


def _sweep_options(
    options: Options, heads: dict[str, Head], steps: Steps, inputs: LinearInputs, shard: Shard
) -> LinearOptions:
    spec = options.spec(shard.width)
    scales = {model: float(head.scale) for model, head in heads.items()}
    softcaps = {model: optional_float(head.softcap) for model, head in heads.items()}
    return LinearOptions(
        num_steps=steps.layout.num_steps,
        student_scale=scales["student"],
        teacher_scale=scales.get("teacher", 1.0),
        reference_scale=scales.get("reference", 1.0),
        student_softcap=softcaps["student"],
        teacher_softcap=softcaps.get("teacher"),
        reference_softcap=softcaps.get("reference"),
        divergence=spec.divergence,
        beta=float(spec.beta),
        temperature=float(spec.temperature),
        vocab_size=spec.vocab_size,
        min_log_prob=optional_float(spec.min_log_prob),
        chunk_size=0,
        backend=options.resolve_backend(steps.ids, inputs.dtype),
        group=shard.group,
        first_column=shard.first,
        total_columns=shard.vocab_size,
        function=options.function,
    )
