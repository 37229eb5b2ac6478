"""Scores at the rows of a batch, and nowhere else: hidden states, logits, or what a server lists of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from sod.errors import ModelError
from sod.packing import Batch
from sod_kernels import token_log_probs

MAX_ENTRIES = 1 << 26
"""Logits that are made at a time where only log-probabilities are wanted of them: 256 MiB in float32."""


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

    def to(self, device: torch.device) -> TopScores:
        """Copy both to a device."""
        return TopScores(log_probs=self.log_probs.to(device), ids=self.ids.to(device))


@dataclass(frozen=True, kw_only=True)
class HiddenRows:
    """Hidden states and the head that makes logits of them: all that a model says, and no (N, V) in memory.

    Attributes:
        hidden: (N, H) last hidden states, differentiable where the model is.
        weight: (V, H) of the head, of the same dtype.
        bias: (V,) or None.
        softcap: Bound of the logits, cap * tanh(logits / cap), or None.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    softcap: float | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the hidden states; the head is the model's."""
        return self.hidden.nbytes

    def to(self, device: torch.device) -> HiddenRows:
        """Copy the hidden states to a device; the head stays where it is."""
        return replace(self, hidden=self.hidden.to(device))

    def logits(self, rows: slice = slice(None)) -> Tensor:
        """Multiply the head.

        Args:
            rows: Which rows; all by default.

        Returns:
            (N, V) logits.
        """
        made = functional.linear(self.hidden[rows], self.weight, self.bias)
        return made if self.softcap is None else self.softcap * torch.tanh(made / self.softcap)

    def detach(self) -> HiddenRows:
        """Give the same without a gradient."""
        bias = None if self.bias is None else self.bias.detach()
        return replace(self, hidden=self.hidden.detach(), weight=self.weight.detach(), bias=bias)


ModelScores = Tensor | HiddenRows
"""(N, V) logits, or the hidden states and the head that give them."""

TeacherScores = ModelScores | TopScores
"""What a teacher says of N rows."""


def logits_of(scores: ModelScores) -> Tensor:
    """Give (N, V) logits, made where there are only hidden states."""
    return scores.logits() if isinstance(scores, HiddenRows) else scores


def num_columns(scores: ModelScores) -> int:
    """Give the number of columns of the logits."""
    return scores.weight.shape[0] if isinstance(scores, HiddenRows) else scores.shape[-1]


def row_states(model: PreTrainedModel, batch: Batch) -> HiddenRows:
    """Score the rows of a batch, up to the head.

    Only the N rows that predict response tokens are kept, so prompts, observations and padding cost nothing
    vocabulary-wide. No mask is passed: padding is on the right, where causal attention never looks.

    Args:
        model: A causal language model whose logits are its output embedding times its last hidden state,
            capped where it says so.
        batch: The microbatch, on the model's device.

    Returns:
        N rows in the model's dtype, under autocast in that of its matrix products.
    """
    hidden = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
    return _before_head(model, hidden.flatten(0, 1).index_select(0, batch.rows))


def row_logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Score the rows of a batch with (N, V) logits; see `row_states`."""
    return row_states(model, batch).logits()


@torch.no_grad()
def row_log_probs(scores: ModelScores, ids: Tensor, *, temperature: float, vocab_size: int) -> Tensor:
    """Give the log-probability of one id per row, a few rows at a time.

    Args:
        scores: Of N rows.
        ids: (N,).
        temperature: Divides the logits.
        vocab_size: Columns that are real tokens.

    Returns:
        (N,) nats, without a gradient.
    """

    def part(rows: slice) -> Tensor:
        logits = scores.logits(rows) if isinstance(scores, HiddenRows) else scores[rows]
        return token_log_probs(logits[:, :vocab_size], ids[rows], temperature=temperature).log_probs

    size = max(1, MAX_ENTRIES // num_columns(scores))
    return torch.cat([part(slice(start, start + size)) for start in range(0, max(len(ids), 1), size)])


def _before_head(model: PreTrainedModel, hidden: Tensor) -> HiddenRows:
    head = output_head(model)
    weight, bias, kind = head.weight, getattr(head, "bias", None), hidden.device.type
    if torch.is_autocast_enabled(kind):
        # What autocast would make of the product.
        dtype = torch.get_autocast_dtype(kind)
        hidden, weight, bias = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return HiddenRows(hidden=hidden, weight=weight, bias=bias, softcap=cap)


def output_head(model: PreTrainedModel) -> Any:
    """Give the module that turns hidden states into logits."""
    return model.get_output_embeddings()  # type: ignore[no-untyped-call]


@torch.no_grad()
def check_head(model: PreTrainedModel, role: str) -> None:
    """Prove on a short input that a model's logits are what `row_states` says.

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
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    parts = _before_head(model, hidden).logits()
    model.train(was_training)
    if not torch.allclose(whole.float(), parts.float(), rtol=1e-3, atol=1e-3):
        raise ModelError(
            f"{role}: the logits of {type(model).__name__} are not its output embedding times its hidden "
            "states, capped or not (it scales them); such models are not supported"
        )
