"""Makes the engine that a section of settings describes."""

from __future__ import annotations

from transformers import PreTrainedModel

from sod.config_engines import ContinuousSection, EngineSection, LockstepSection, ReplaySection, VLLMSection
from sod.engines.base import RolloutEngine
from sod.engines.hf import HFEngine
from sod.engines.hf_continuous import ContinuousEngine
from sod.engines.replay import ReplayEngine
from sod.engines.vllm_local import VLLMEngine
from sod.engines.vllm_server import VLLMServerEngine

WEIGHT_BOUND = {"float32": 1e-3, "bfloat16": 0.5}


def make_engine(
    section: EngineSection,
    model: PreTrainedModel,
    *,
    pad_id: int,
    vocab_size: int,
    max_batch: int,
    max_total_tokens: int,
) -> RolloutEngine:
    """Make an engine; the caller closes it.

    Args:
        section: Its settings.
        model: The trained model.
        pad_id: Token id of padding.
        vocab_size: Columns of the logits that are real tokens.
        max_batch: Rows decoded, or requests in flight, at the same time.
        max_total_tokens: Tokens that a row may have in all.

    Returns:
        The engine. One with weights of its own has none until `update_weights`; one that replays has nothing
        to play until `load`.

    Raises:
        SodError: It cannot be had here, or does not answer.
    """
    match section:
        case LockstepSection():
            return HFEngine(model, pad_id=pad_id, vocab_size=vocab_size, max_batch=max_batch)
        case ContinuousSection():
            return ContinuousEngine(model, section, vocab_size=vocab_size, max_batch=max_batch)
        case VLLMSection():
            return VLLMEngine(
                model, section, vocab_size=vocab_size, max_batch=max_batch, max_total_tokens=max_total_tokens
            )
        case ReplaySection():
            return ReplayEngine()
    return VLLMServerEngine(section, vocab_size=vocab_size, max_batch=max_batch)


def weight_bound(section: EngineSection) -> float:
    """Give the largest gap allowed between engine and trainer after an update of the weights, nats."""
    if section.weight_bound is not None:
        return section.weight_bound
    return WEIGHT_BOUND[getattr(section, "dtype", "float32")]
