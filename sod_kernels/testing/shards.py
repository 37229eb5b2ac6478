"""Check of a backend on shards of the columns, as the ranks of a process group hold them; in one process."""

from __future__ import annotations

import torch

from sod_kernels import _parallel
from sod_kernels._parallel_log_probs import ShardedLogProbs, merge
from sod_kernels.reference.backend import sums_over_shard
from sod_kernels.testing.cases import StepKLCase
from sod_kernels.testing.checks import check_accuracy, check_step_sums, nan_filled_empty
from sod_kernels.testing.log_probs import check_log_prob_results, make_log_prob_inputs
from sod_kernels.testing.truth import plain_torch, truth
from sod_kernels.types import Backend, DivergenceSpec, RowState, TokenInputs


def _cut(case: StepKLCase, num_shards: int) -> list[tuple[TokenInputs, DivergenceSpec]]:
    """What each rank would hand to the backend; the last shards may have no valid column."""
    vocab_size = case.spec.vocab_size
    width = -(-vocab_size // num_shards)
    parts = []
    for first in range(0, num_shards * width, width):
        valid = max(0, min(width, vocab_size - first))
        shard = _parallel.Shard(first=first, width=valid, vocab_size=vocab_size, group="all")
        reference, sampled = case.reference_logits, case.sampled_ids
        columns = slice(first, first + width)
        inputs = TokenInputs(
            case.student_logits[..., columns],
            case.teacher_logits[..., columns],
            None if reference is None else reference[..., columns],
            case.step_ids,
            None if sampled is None else _parallel.local_ids(sampled, shard),
        )
        spec = DivergenceSpec(
            divergence=case.spec.divergence,
            beta=case.spec.beta,
            temperature=case.spec.temperature,
            vocab_size=valid,
            min_log_prob=case.spec.min_log_prob,
        )
        parts.append((inputs, spec))
    return parts


def check_backend_shards(backend: Backend, case: StepKLCase, num_shards: int) -> None:
    """Check that merged shards give what the whole rows give.

    Args:
        backend: A module (or object) with the backend interface.
        case: From `make_case`.
        num_shards: How many ranks to imitate.

    Raises:
        AssertionError: At the first output that is off.
    """
    parts = _cut(case, num_shards)
    has_reference = case.reference_logits is not None
    with nan_filled_empty():
        states = torch.stack([_parallel.local_state(backend, i, case.num_steps, spec) for i, spec in parts])
        whole = _parallel.merge_states(states, case.step_ids, case.spec, has_reference=has_reference)
        if _parallel.needs_second_walk(case.spec):
            state = whole[..., : len(RowState)]
            sums = torch.stack([sums_over_shard(inputs, state, spec) for inputs, spec in parts])
            whole = _parallel.with_sums(whole, sums, case.step_ids, case.spec)
        stats = _parallel.make_stats(whole, case.inputs, case.num_steps, case.spec)
        grads = [
            backend.backward(case.upstream, inputs, stats.row_state, spec)
            if spec.vocab_size > 0
            else torch.zeros_like(inputs.student_logits)
            for inputs, spec in parts
        ]
    grad = torch.zeros_like(case.student_logits, memory_format=torch.contiguous_format)
    for (inputs, _), part, number in zip(parts, grads, range(num_shards), strict=True):
        first = number * -(-case.spec.vocab_size // num_shards)
        grad[..., first : first + inputs.student_logits.shape[-1]] = part
    check_accuracy(stats, grad, case, truth(case), plain_torch(case))
    check_step_sums(stats, case)


def check_backend_log_prob_shards(backend: Backend, case: StepKLCase, num_shards: int) -> None:
    """Check that merged shards give the log-probabilities and the gradient of the whole rows.

    Args:
        backend: A module (or object) with the backend interface.
        case: From `make_case`.
        num_shards: How many ranks to imitate.

    Raises:
        AssertionError: At the first output that is off.
    """
    inputs, upstream = make_log_prob_inputs(case)
    # At rows in no step ids may be anything, in shards too.
    width = -(-inputs.vocab_size // num_shards)
    parts = []
    for first in range(0, num_shards * width, width):
        valid = max(0, min(width, inputs.vocab_size - first))
        logits = case.student_logits[..., first : first + width]
        sweeps = ShardedLogProbs(backend, first, "all", width=width)
        parts.append((sweeps, inputs._replace(student_logits=logits, vocab_size=valid)))
    with nan_filled_empty():
        states = torch.stack([sweeps.local_state(part) for sweeps, part in parts])
        stats = merge(states, inputs)
        grads = [sweeps.log_probs_backward(upstream, part, stats.row_state) for sweeps, part in parts]
    grad = torch.zeros_like(case.student_logits, memory_format=torch.contiguous_format)
    for (sweeps, part), of_part in zip(parts, grads, strict=True):
        first = sweeps.first
        grad[..., first : first + part.student_logits.shape[-1]] = of_part
    check_log_prob_results(stats, grad, case)
