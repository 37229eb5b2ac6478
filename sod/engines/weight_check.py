"""Proof that the weights of an engine are those of the trainer, after every change of them.

Weights that only seem to arrive are the failure that no error shows: the rollout looks well and is off
policy. So a fixed text is scored on both sides. Its ids reach over the whole vocabulary, so that embedding,
every layer and the head take part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sod.engines.base import RolloutEngine, WeightSource
from sod.engines.sampling import mix_seed
from sod.errors import WeightSyncError

NUM_IDS = 48
"""Length of the text."""


def check_ids(vocab_size: int) -> tuple[int, ...]:
    """Give the fixed text: ids spread over the vocabulary, the same for the same size.

    Args:
        vocab_size: Ids to choose from.

    Returns:
        `NUM_IDS` token ids.
    """
    return tuple(mix_seed(vocab_size, index) % vocab_size for index in range(NUM_IDS))


@torch.inference_mode()
def model_scores(model: nn.Module, ids: Sequence[int]) -> tuple[float, ...]:
    """Score a text with a transformers model; see `sod.engines.base.RolloutEngine.score`.

    Args:
        model: A causal language model; its mode is put back.
        ids: Token ids, at least two.

    Returns:
        Log-probabilities in nats of every id but the first.
    """
    was_training = model.training
    model.eval()
    try:
        # (1, T)
        inputs = torch.tensor([ids], device=next(model.parameters()).device)
        logits = model(input_ids=inputs, use_cache=False).logits[0, :-1].float()
    finally:
        model.train(was_training)
    scores: list[float] = logits.log_softmax(-1).gather(-1, inputs[0, 1:, None])[:, 0].tolist()
    return tuple(scores)


def update_and_check(
    engine: RolloutEngine, model: nn.Module, policy_version: int, *, vocab_size: int, bound: float
) -> float:
    """Hand weights to an engine, and prove that it samples with them.

    Args:
        engine: Takes the weights over.
        model: The trained model.
        policy_version: Number of optimiser updates behind its weights.
        vocab_size: Ids that the fixed text is made of.
        bound: Largest difference allowed, nats.

    Returns:
        The largest difference, nats; 0 for an engine without weights.

    Raises:
        WeightSyncError: Naming the engine, the position and both values.
    """
    source: WeightSource = model
    engine.update_weights(source, policy_version)
    ids = check_ids(vocab_size)
    got = engine.score(ids)
    if got is None:
        return 0.0
    wanted = model_scores(model, ids)
    gaps = [_gap(*pair) for pair in zip(got, wanted, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    if gaps[worst] > bound:
        raise WeightSyncError(_message(engine, policy_version, ids, worst, got[worst], wanted[worst], bound))
    return gaps[worst]


def _gap(got: float, wanted: float) -> float:
    gap = abs(got - wanted)
    # A score that is not a number must not pass for a small one.
    return math.inf if math.isnan(gap) else gap


def _message(
    engine: Any, version: int, ids: Sequence[int], worst: int, got: float, wanted: float, bound: float
) -> str:
    return (
        f"update_and_check: {type(engine).__name__} does not have the trainer's weights of update {version}: "
        f"at position {worst + 1} of the fixed text (id {ids[worst + 1]}) it gives log-prob {got:.6f}, the "
        f"trainer {wanted:.6f}; the difference is beyond [engine] weight_bound = {bound:g}. Nothing was "
        "sampled. Look at the engine's log; raise the bound only if its number format (bfloat16) explains it."
    )
