"""Scores at the rows of a batch, and nowhere else: logits of a model, or what a server lists of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sod.errors import ModelError
from sod.packing import Batch


@dataclass(frozen=True, kw_only=True)
class TopScores:
    """Log-probabilities of a few ids per row, the sampled one among them.

    Attributes:
        log_probs: (N, K) float32, nats, of the softmax over the whole vocabulary at temperature 1.
        ids: (N, K) int64; -1 where a row lists fewer.
    """

    log_probs: Tensor
    ids: Tensor

    @property
    def nbytes(self) -> int:
        """Memory of both."""
        return self.log_probs.nbytes + self.ids.nbytes


TeacherScores = Tensor | TopScores
"""(N, V) logits, or what a server lists of them."""


def row_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Score the rows of a batch.

    The head runs on the N rows that predict response tokens, so prompts, observations and padding cost no
    vocabulary-wide memory. No mask is passed: padding is on the right, where causal attention never looks.

    Args:
        model: A causal language model whose logits are its output embedding times its last hidden state,
            capped where it says so.
        batch: The microbatch, on the model's device.

    Returns:
        (N, V) logits in the model's dtype, differentiable where the model is.
    """
    hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    picked = hidden.flatten(0, 1).index_select(0, batch.rows)
    return _head_logits(model, picked)


def _head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits of hidden states; some models bend them, cap * tanh(logits / cap)."""
    logits: Tensor = output_head(model)(hidden)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def output_head(model: PreTrainedModel) -> Any:
    """Give the module that turns hidden states into logits."""
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


@torch.no_grad()
def check_head(model: PreTrainedModel, role: str) -> None:
    """Prove on a short input that a model's logits are what `row_logits` computes.

    Args:
        model: The model.
        role: "student" or "teacher", for the message.

    Raises:
        ModelError: For a model that scales its logits after the head, or changes them otherwise than by the
            cap `final_logit_softcapping`.
    """
    head = output_head(model)
    if head is None:
        raise ModelError(
            f"{role}: {type(model).__name__} has no output embedding; wanted a causal language model"
        )
    was_training = model.training
    model.train(False)
    ids = torch.arange(4, device=model.device)[None]
    whole = model(input_ids=ids, use_cache=False).logits
    parts = _head_logits(model, model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    model.train(was_training)
    if not torch.allclose(whole.float(), parts.float(), rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{role}: the logits of {type(model).__name__} are not its output embedding times its hidden "
            "states, capped or not (it scales them); such models are not supported"
        )
