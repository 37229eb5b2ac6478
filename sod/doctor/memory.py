"""Estimates the memory of each phase of a run from the shapes of its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from sod.config import MuonSection, RunConfig
from sod_kernels.linear.plan import default_chunk_size

GIB = 1 << 30
_FLOAT32_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the memory of a model follows from.

    Attributes:
        num_parameters: Numbers in its weights, tied ones once.
        bytes_per_weight: Of the dtype that it is kept in.
        num_layers: Decoder layers.
        hidden_size: Width.
        intermediate_size: Width of the feed-forward layers; for a mixture, that of the experts of a token.
        key_value_size: Numbers that a layer keeps per token for attention, keys and values together.
        query_size: Heads times head dimension.
        vocab_rows: Columns of its logits.
    """

    num_parameters: int
    bytes_per_weight: int
    num_layers: int
    hidden_size: int
    intermediate_size: int
    key_value_size: int
    query_size: int
    vocab_rows: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelShape:
        """Read a model's shape; its weights may be on the meta device."""
        config: Any = model.config.get_text_config()
        num_heads = int(config.num_attention_heads)
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // num_heads)
        num_key_value_heads = int(getattr(config, "num_key_value_heads", None) or num_heads)
        per_expert = getattr(config, "moe_intermediate_size", None)
        num_experts = getattr(config, "num_experts_per_tok", None)
        intermediate = config.intermediate_size
        if per_expert is not None and num_experts is not None:
            intermediate = per_expert * num_experts
        embedding: Any = model.get_input_embeddings()
        return cls(
            num_parameters=sum(parameter.numel() for parameter in model.parameters()),
            bytes_per_weight=model.dtype.itemsize,
            num_layers=int(config.num_hidden_layers),
            hidden_size=int(config.hidden_size),
            intermediate_size=int(intermediate),
            key_value_size=2 * num_key_value_heads * head_dim,
            query_size=num_heads * head_dim,
            vocab_rows=int(embedding.weight.shape[0]),
        )

    @property
    def weight_bytes(self) -> int:
        """Memory of the weights."""
        return self.num_parameters * self.bytes_per_weight

    def cache_bytes(self, num_tokens: int, bytes_per_number: int) -> int:
        """Memory of the attention cache of so many tokens."""
        return num_tokens * self.num_layers * self.key_value_size * bytes_per_number

    def activation_bytes(self, num_tokens: int, bytes_per_number: int, *, has_checkpointing: bool) -> int:
        """Memory that a forward pass keeps for its backward pass, without the head.

        A layer of two norms, attention and a gated feed-forward block keeps: the input of each norm and of
        each block of projections, with copies inside the norms (10 H in all), queries, keys, values and
        the attention's output (3 Q + 2 K), and gate, its activation, up and their product (4 I). The last
        norm keeps 2 H.

        Args:
            num_tokens: Padded tokens of the microbatch.
            bytes_per_number: Of the dtype that the layers compute in.
            has_checkpointing: Whether a layer keeps its input alone and is computed again.
        """
        per_layer = 10 * self.hidden_size + 3 * self.query_size + 2 * self.key_value_size
        per_layer += 4 * self.intermediate_size
        kept = (self.num_layers + 2) * self.hidden_size + per_layer
        if not has_checkpointing:
            kept = 2 * self.hidden_size + self.num_layers * per_layer
        return num_tokens * kept * bytes_per_number


def estimate_phases(config: RunConfig, student: ModelShape, teachers: Sequence[ModelShape]) -> dict[str, int]:
    """Estimate the most memory that each phase of a run needs on its device.

    Tokens of a microbatch are counted as if all were response tokens, so long prompts and observations make
    the true figure smaller.

    Args:
        config: The settings.
        student: Shape of the student.
        teachers: Shapes of the teachers that are loaded beside it.

    Returns:
        Bytes by phase: "rollout", "score" (with a teacher), "update".
    """
    trainer, rollout = config.trainer, config.rollout
    compute_bytes = torch.bfloat16.itemsize if trainer.precision == "bfloat16" else student.bytes_per_weight
    tokens = trainer.max_microbatch_tokens
    resident = student.weight_bytes + sum(teacher.weight_bytes for teacher in teachers)
    if config.algorithm.needs_reference:
        resident += student.weight_bytes
    kept = trainer.teacher_cache_mib << 20 if config.algorithm.needs_teacher else 0
    optimizer = 2 * student.num_parameters * student.bytes_per_weight
    if isinstance(config.optimizer, MuonSection):
        optimizer //= 2
    phases = {}
    if config.algorithm.is_on_policy:
        rows = min(rollout.max_batch, trainer.tasks_per_round * rollout.num_samples)
        cache = student.cache_bytes(rows * rollout.max_trajectory_tokens, compute_bytes)
        step_logits = rows * student.vocab_rows * _FLOAT32_BYTES
        phases["rollout"] = resident + optimizer + cache + step_logits
    # A teacher of the same ids is compared from hidden states, in chunks; else there are logits.
    is_chunked = config.algorithm.needs_teacher and config.algorithm.needs_equal_ids
    if teachers:
        width = max(
            (each.hidden_size if is_chunked else each.vocab_rows) * each.bytes_per_weight for each in teachers
        )
        phases["score"] = resident + optimizer + kept + tokens * width
    has_checkpointing = config.student is not None and config.student.gradient_checkpointing
    activations = student.activation_bytes(tokens, compute_bytes, has_checkpointing=has_checkpointing)
    if is_chunked:
        num_models = 2 + config.algorithm.needs_reference
        head = _chunk_bytes(config, student, num_models, tokens)
    else:
        # Logits, their gradient, and the teacher's.
        head = (3 if teachers else 2) * tokens * student.vocab_rows * compute_bytes
    phases["update"] = resident + optimizer + student.weight_bytes + kept + activations + head
    return phases


def _chunk_bytes(config: RunConfig, student: ModelShape, num_models: int, tokens: int) -> int:
    """Memory of `linear_step_kl`: logits of a chunk, and the gradient of the head before it is rounded."""
    has_device = config.trainer.device != "cpu" and torch.cuda.is_available()
    columns, kind = student.vocab_rows, "cuda" if has_device else "cpu"
    rows = min(tokens, default_chunk_size(columns, num_models, _FLOAT32_BYTES, kind))
    return _FLOAT32_BYTES * columns * (num_models * rows + student.hidden_size)
