"""Estimates the memory of each phase of a run from the shapes of its models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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

    @property
    def head_bytes(self) -> int:
        """Memory of the output head, which may be the embedding too."""
        return self.vocab_rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        """Memory of the hidden state of one token."""
        return self.hidden_size * self.bytes_per_weight

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


@dataclass(frozen=True, kw_only=True)
class FrozenShapes:
    """Models beside the student, by where their weights are.

    Attributes:
        resident: On the device for the whole run.
        offloaded: In host memory, but for the phase in which they score; their heads stay on the device
            during the updates too.
        reference: The policy that steps are held to, which goes where the teacher goes; None for a copy of
            the student. Counted where the algorithm has one.
    """

    resident: Sequence[ModelShape] = ()
    offloaded: Sequence[ModelShape] = ()
    reference: ModelShape | None = None

    def with_reference(self, student: ModelShape) -> FrozenShapes:
        """Put the reference policy where it goes."""
        added = self.reference or student
        if self.offloaded:
            return replace(self, offloaded=(*self.offloaded, added))
        return replace(self, resident=(*self.resident, added))

    @property
    def resident_bytes(self) -> int:
        """Memory of the device that is taken in every phase."""
        return sum(each.weight_bytes for each in self.resident)

    @property
    def heads_bytes(self) -> int:
        """Memory of the device that offloaded models take during the updates."""
        return sum(each.head_bytes for each in self.offloaded)

    @property
    def scoring_bytes(self) -> int:
        """Most memory of the device that offloaded models take while one of them scores."""
        largest = max((each.weight_bytes - each.head_bytes for each in self.offloaded), default=0)
        return largest + self.heads_bytes


def estimate_host(config: RunConfig, student: ModelShape, teachers: FrozenShapes) -> int:
    """Estimate the host memory of offloaded models: their weights, and what they say of a round.

    Args:
        config: The settings; every token of a round is counted as a response token.
        student: Shape of the student.
        teachers: Shapes of the teachers.

    Returns:
        Bytes; 0 without an offloaded model.
    """
    if not teachers.offloaded:
        return 0
    tokens = config.trajectories_per_round * config.rollout.max_trajectory_tokens
    per_token = max(each.row_bytes for each in (*teachers.resident, *teachers.offloaded))
    weights = sum(each.weight_bytes for each in teachers.offloaded)
    if config.algorithm.needs_reference:
        reference = teachers.reference or student
        per_token, weights = per_token + reference.row_bytes, weights + reference.weight_bytes
    return weights + tokens * per_token


def estimate_phases(config: RunConfig, student: ModelShape, teachers: FrozenShapes) -> dict[str, int]:
    """Estimate the most memory that each phase of a run needs on its device.

    Tokens of a microbatch are counted as if all were response tokens, so long prompts and observations make
    the true figure smaller.

    Args:
        config: The settings.
        student: Shape of the student.
        teachers: Shapes of the teachers beside it.

    Returns:
        Bytes by phase: "rollout", "score" (with a teacher), "update".
    """
    trainer = config.trainer
    compute_bytes = torch.bfloat16.itemsize if trainer.precision == "bfloat16" else student.bytes_per_weight
    tokens = trainer.max_microbatch_tokens
    frozen = teachers.with_reference(student) if config.algorithm.needs_reference else teachers
    models = (*frozen.resident, *frozen.offloaded)
    base = student.weight_bytes + frozen.resident_bytes + _optimizer_bytes(config, student)
    # What offloaded models said waits in host memory, but for the microbatch at hand.
    kept = trainer.teacher_cache_mib << 20 if config.algorithm.needs_teacher else 0
    if frozen.offloaded:
        kept = tokens * max(each.row_bytes for each in models)
        kept *= 1 + config.algorithm.needs_reference
    phases = {}
    if config.algorithm.is_on_policy:
        phases["rollout"] = base + _rollout_bytes(config, student, compute_bytes)
    # A teacher of the same ids is compared from hidden states, in chunks; else there are logits.
    is_chunked = config.algorithm.needs_teacher and config.algorithm.needs_equal_ids
    if models:
        width = max(
            each.row_bytes if is_chunked else each.vocab_rows * each.bytes_per_weight for each in models
        )
        phases["score"] = base + (frozen.scoring_bytes if frozen.offloaded else kept) + tokens * width
    has_checkpointing = config.student is not None and config.student.gradient_checkpointing
    activations = student.activation_bytes(tokens, compute_bytes, has_checkpointing=has_checkpointing)
    if is_chunked:
        num_models = 2 + config.algorithm.needs_reference
        head = _chunk_bytes(config, student, num_models, tokens)
    else:
        # Logits, their gradient, and the teacher's.
        head = (3 if models else 2) * tokens * student.vocab_rows * compute_bytes
    phases["update"] = base + student.weight_bytes + frozen.heads_bytes + kept + activations + head
    return phases


def _optimizer_bytes(config: RunConfig, student: ModelShape) -> int:
    """Memory of the moments: two for AdamW, about one for Muon."""
    num_moments = 1 if isinstance(config.optimizer, MuonSection) else 2
    return num_moments * student.weight_bytes


def _rollout_bytes(config: RunConfig, student: ModelShape, bytes_per_number: int) -> int:
    """Memory of the attention cache and of the logits of one decode step."""
    trainer, rollout = config.trainer, config.rollout
    rows = min(rollout.max_batch, trainer.tasks_per_round * rollout.num_samples)
    cache = student.cache_bytes(rows * rollout.max_trajectory_tokens, bytes_per_number)
    return cache + rows * student.vocab_rows * _FLOAT32_BYTES


def _chunk_bytes(config: RunConfig, student: ModelShape, num_models: int, tokens: int) -> int:
    """Memory of `linear_step_kl`: logits of a chunk, and the gradient of the head before it is rounded."""
    has_device = config.trainer.device != "cpu" and torch.cuda.is_available()
    columns, kind = student.vocab_rows, "cuda" if has_device else "cpu"
    rows = min(tokens, default_chunk_size(columns, num_models, _FLOAT32_BYTES, kind))
    return _FLOAT32_BYTES * columns * (num_models * rows + student.hidden_size)
