"""What runs inside vLLM's own processes: taking over weights, and keeping padding columns out of sampling.

vLLM finds both by name: `worker_extension_cls` and `logits_processors`. A server that the trainer is to
update is started with them, see docs/engines.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

VOCAB_SIZE_KEY = "sod_vocab_size"
"""Key in vLLM's `additional_config`: columns of the logits that are real tokens."""


class WeightReload:
    """Becomes a base of vLLM's worker; a method of it runs in every worker by `collective_rpc`."""

    def sod_reload_weights(
        self, weights_path: str | None = None, weights: Iterable[tuple[str, Tensor]] | None = None
    ) -> None:
        """Take over weights in the form of a checkpoint.

        Args:
            weights_path: Folder to read them from; None where they are given.
            weights: Names and tensors.
        """
        worker: Any = self
        if weights_path is not None:
            worker.reload_weights(weights_path=weights_path)
        else:
            worker.reload_weights(weights_iterator=weights)
        _repack_heads(worker.get_model())


def _repack_heads(model: torch.nn.Module) -> None:
    # On a CPU vLLM packs a copy of the output head when it loads a model. A reload renews the copy of a
    # head of its own, but not of one that is tied to the embedding: it would go on with the old weights.
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in model.modules():
        if isinstance(module, VocabParallelEmbedding) and hasattr(module, "cpu_linear"):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


class PaddingMask(LogitsProcessor):  # type: ignore[misc]
    """Gives no probability to columns of the logits that are no tokens.

    A model may pad its vocabulary; the trainer leaves the padding out, so the policy that samples must too.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        """Read the size from `additional_config`; None there masks nothing."""
        self._vocab_size = vllm_config.additional_config.get(VOCAB_SIZE_KEY)

    def apply(self, logits: Tensor) -> Tensor:
        """Mask the columns, in place."""
        if self._vocab_size is not None:
            logits[:, self._vocab_size :] = -torch.inf
        return logits

    def is_argmax_invariant(self) -> bool:
        """Say no: the largest logit may be that of a padding column."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Do nothing; every request is treated alike."""
