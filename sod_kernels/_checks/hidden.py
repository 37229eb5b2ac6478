"""Checks of the arguments of `linear_step_kl`: heads, policy term, and where the plan can be made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sod_kernels._checks.single_sweep import check_single_sweep
from sod_kernels._checks.values import FLOAT_DTYPES, check_count, check_number, check_tensor


def check_heads(function: str, heads: Mapping[str, tuple[Any, Any, Any, Any, Any]], vocab_size: Any) -> int:
    """Check the output head of every model.

    Args:
        function: Name for the message.
        heads: Model to hidden states (N, H) or (B, T, H), weight (V, H), bias (V,) or None, logit scale, and
            softcap or None; the student first, which sets leading shape and device.
        vocab_size: Valid columns of all; None if the widths are equal and every column is valid.

    Returns:
        Number of valid columns.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or width.
    """
    first = next(iter(heads))
    hidden = heads[first][0]
    check_tensor(function, f"{first}_hidden", hidden, dtypes=FLOAT_DTYPES)
    if hidden.dim() not in (2, 3):
        shape = tuple(hidden.shape)
        raise ValueError(f"{function}: {first}_hidden has shape {shape}; wanted (N, H) or (B, T, H).")
    for model, head in heads.items():
        check_head(function, model, *head, like=hidden)
    widths = {f"{model}_weight": head[1].shape[0] for model, head in heads.items()}
    smallest = min(widths.values())
    told = ", ".join(f"{name} {width}" for name, width in widths.items())
    if vocab_size is None and len(set(widths.values())) > 1:
        raise ValueError(
            f"{function}: unequal numbers of rows: {told}; give vocab_size=, the number of rows that mean "
            "the same token in all, if the others are padding."
        )
    size = smallest if vocab_size is None else vocab_size
    check_count(function, "vocab_size", size, at_least=1)
    if size > smallest:
        raise ValueError(
            f"{function}: vocab_size={size}; wanted at most {smallest}, the fewest rows of {told}."
        )
    return int(size)


def check_scales(function: str, **scales: tuple[Any, Any]) -> None:
    """Check what is done to the products of hidden states and weights.

    Args:
        function: Name for the message.
        **scales: Logit scale, and softcap or None, by model.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not finite or not above 0.
    """
    for model, (scale, softcap) in scales.items():
        check_number(function, f"{model}_logit_scale", scale, above=0.0)
        if softcap is not None:
            check_number(function, f"{model}_softcap", softcap, above=0.0)


def check_head(
    function: str,
    model: str,
    hidden: Any,
    weight: Any,
    bias: Any,
    scale: Any,
    softcap: Any,
    *,
    like: Tensor,
) -> None:
    """Check one model's output head.

    Args:
        function: Name for the message.
        model: Such as "student".
        hidden: (..., H) floating.
        weight: (V, H) of the same dtype.
        bias: (V,) or None.
        scale: Factor of the product.
        softcap: Or None.
        like: Hidden states of the wanted leading shape and device.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or number.
    """
    device = like.device
    check_tensor(function, f"{model}_hidden", hidden, dtypes=FLOAT_DTYPES, device=device)
    leading = tuple(like.shape[:-1])
    if hidden.dim() == 0 or tuple(hidden.shape[:-1]) != leading:
        raise ValueError(
            f"{function}: {model}_hidden has shape {tuple(hidden.shape)}; wanted {leading} before the hidden "
            "size."
        )
    check_tensor(function, f"{model}_weight", weight, dtypes=(hidden.dtype,), device=device)
    size = hidden.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != size or size == 0:
        raise ValueError(
            f"{function}: {model}_weight has shape {tuple(weight.shape)}; wanted (V, {size}) for "
            f"{model}_hidden of shape {tuple(hidden.shape)}, as in torch.nn.Linear, and a hidden size of at "
            "least 1."
        )
    if bias is not None:
        shape = (weight.shape[0],)
        check_tensor(function, f"{model}_bias", bias, shape=shape, dtypes=(hidden.dtype,), device=device)
    check_scales(function, **{model: (scale, softcap)})


def check_reference(function: str, hidden: Any, weight: Any, bias: Any, scale: Any, softcap: Any) -> None:
    """Refuse half a reference.

    Args:
        function: Name for the message.
        hidden: Hidden states or None.
        weight: Or None.
        bias: Or None.
        scale: Logit scale, 1 unless given.
        softcap: Or None.

    Raises:
        ValueError: If something of it is given without hidden states and weight.
    """
    if (hidden is None) != (weight is None):
        given, missing = ("hidden", "weight") if weight is None else ("weight", "hidden")
        raise ValueError(
            f"{function}: got reference_{given} without reference_{missing}; wanted both or neither."
        )
    options = {"reference_bias": bias, "reference_softcap": softcap}
    unused = [name for name, value in options.items() if value is not None]
    unused += ["reference_logit_scale"] if scale != 1.0 else []
    if hidden is None and unused:
        raise ValueError(
            f"{function}: got {unused[0]} without reference_hidden and reference_weight. Give those, or "
            "leave it out."
        )


def check_mode(function: str, single_sweep: Any, reduction: str, chunk_size: Any) -> None:
    """Check how the sweep is run.

    Args:
        function: Name for the message.
        single_sweep: Bool.
        reduction: One of `arguments.REDUCTIONS`.
        chunk_size: Rows, at least 1, or None.

    Raises:
        TypeError: For a wrong type.
        ValueError: For a wrong number, or a loss per token in a single sweep.
    """
    check_single_sweep(function, single_sweep, reduction)
    if chunk_size is not None:
        check_count(function, "chunk_size", chunk_size, at_least=1)


def check_coefficients(function: str, kl_coefficient: Any, entropy_coefficient: Any) -> None:
    """Check the factors of the parts of the loss.

    Args:
        function: Name for the message.
        kl_coefficient: At least 0.
        entropy_coefficient: Any number; below 0 it drives the entropy down.

    Raises:
        TypeError: If one is no number.
        ValueError: If one is not finite or out of bounds.
    """
    check_number(function, "kl_coefficient", kl_coefficient, at_least=0.0)
    check_number(function, "entropy_coefficient", entropy_coefficient)


def check_policy_gradient(
    advantages: Any, old_log_probs: Any, clip_low: Any, clip_high: Any, dual_clip: Any
) -> None:
    """Check the parts of a `PolicyGradient` when it is made.

    Args:
        advantages: Floating tensor.
        old_log_probs: Floating tensor of the same shape and device.
        clip_low: From 0 to 1.
        clip_high: At least 0.
        dual_clip: Above 1, or None.

    Raises:
        TypeError: For a wrong type or dtype.
        ValueError: For a wrong shape, device or number.
    """
    name = "PolicyGradient"
    check_tensor(name, "advantages", advantages, dtypes=FLOAT_DTYPES)
    shape, device = tuple(advantages.shape), advantages.device
    check_tensor(name, "old_log_probs", old_log_probs, shape=shape, dtypes=FLOAT_DTYPES, device=device)
    if check_number(name, "clip_low", clip_low, at_least=0.0) > 1.0:
        raise ValueError(f"{name}: clip_low={clip_low!r}; wanted at most 1, since no ratio lies below 0.")
    check_number(name, "clip_high", clip_high, at_least=0.0)
    if dual_clip is not None:
        check_number(name, "dual_clip", dual_clip, above=1.0)


def check_policy(function: str, policy: Any, kind: type, sampled_ids: Any, like: Tensor) -> None:
    """Check that a policy term fits the batch.

    Args:
        function: Name for the message.
        policy: `PolicyGradient` or None.
        kind: The class `PolicyGradient`.
        sampled_ids: What the term is about; None if they were not given.
        like: Tensor of the leading shape and device.

    Raises:
        TypeError: If it is something else.
        ValueError: If its shape or device is wrong, or there are no sampled ids.
    """
    if policy is None:
        return
    if not isinstance(policy, kind):
        raise TypeError(
            f"{function}: policy_gradient is {type(policy).__name__}; wanted None or a "
            "PolicyGradient(advantages=..., old_log_probs=...)."
        )
    if sampled_ids is None:
        raise ValueError(
            f"{function}: policy_gradient without sampled_ids, whose log-probabilities it is about. Give "
            "sampled_ids."
        )
    advantages = getattr(policy, "advantages", None)
    check_tensor(
        function, "policy_gradient.advantages", advantages, shape=tuple(like.shape), device=like.device
    )


def check_may_plan(function: str, step_ids: Tensor) -> None:
    """Refuse step ids that would have to be fetched where that is impossible.

    Args:
        function: Name for the message.
        step_ids: Wherever they are.

    Raises:
        ValueError: If they are not on the CPU, in compiled code or under CUDA-graph capture.
    """
    if step_ids.device.type == "cpu":
        return
    is_capturing = step_ids.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if torch.compiler.is_compiling() or is_capturing:
        raise ValueError(
            f"{function}: step_ids are on {step_ids.device}, and the chunks are planned on the host, which "
            "compiled code and CUDA graphs cannot wait for. Give step_ids (and step_trajectory) on the CPU."
        )
