"""Other projects' distillation losses, each called as its documentation shows; absent ones say why.

They are installed apart from the environment of the tests (`requirements-peers.txt` into `.peers`) and come
last on the path, so that they can neither replace nor break what the tests run on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestant import PEER, Contestant, Loss, float_logits, no_extra
from benchmarks.inputs import HiddenInputs, LogitsInputs
from benchmarks.outcomes import SkippedError
from benchmarks.shapes import Case

PACKAGES = ("trl", "liger-kernel", "flash-linear-attention", "fla-core")
# Rows that Liger's chunked loss takes at a time, its default.
_LIGER_CHUNK = 1024


def add_to_path(folder: Path) -> None:
    """Let the packages of a folder be imported, after everything that is installed otherwise."""
    if folder.is_dir() and str(folder) not in sys.path:
        sys.path.append(str(folder))


def versions() -> dict[str, str]:
    """Name the version of every peer that is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _import(module: str, name: str, package: str) -> Any:
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        # A peer may fail in any way where its own requirements are not met, and only its row should suffer.
        raise SkippedError(f"{package} cannot be imported ({type(error).__name__}: {error}).") from error


def _needs_cuda(tensor: Tensor, name: str) -> None:
    if tensor.device.type != "cuda":
        raise SkippedError(f"{name} is Triton and needs a GPU.")


def _trl(inputs: HiddenInputs) -> Loss:
    function = _import("trl.kernels.chunked_divergence", "ChunkedDivergenceFunction", "trl")
    values = (inputs.student, inputs.student_head, None, inputs.teacher, inputs.teacher_head, None)

    def loss() -> Tensor:
        # beta = 1 is the reverse KL; the second output is the entropy.
        divergence: Tensor = function.apply(*values, 1.0)[0]
        return divergence.mean()

    return loss


def _liger_chunked(inputs: HiddenInputs) -> Loss:
    module = _import("liger_kernel.chunked_loss", "LigerFusedLinearJSDLoss", "liger-kernel")(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=1.0, compiled=True, chunk_size=_LIGER_CHUNK
    )
    # Labels only say which rows count.
    labels = torch.zeros_like(inputs.rows.source)
    values = (inputs.student, inputs.student_head, inputs.teacher, inputs.teacher_head, labels)
    return lambda: module(*values)


def _liger_linear_jsd(inputs: HiddenInputs) -> Loss:
    _needs_cuda(inputs.student, "LigerFusedLinearJSD")
    module = _import("liger_kernel.transformers", "LigerFusedLinearJSD", "liger-kernel")(jsd_beta=1.0)
    values = (inputs.student, inputs.student_head, inputs.teacher, inputs.teacher_head, None)
    return lambda: module(*values)


def _fla(inputs: HiddenInputs) -> Loss:
    _needs_cuda(inputs.student, "FusedKLDivLoss")
    module = _import("fla.modules", "FusedKLDivLoss", "flash-linear-attention")()
    values = (inputs.student, inputs.teacher, inputs.student_head, inputs.teacher_head)
    return lambda: module(*values)


def _liger_jsd(inputs: LogitsInputs) -> Loss:
    _needs_cuda(inputs.student, "LigerJSD")
    module = _import("liger_kernel.transformers", "LigerJSD", "liger-kernel")(beta=1.0)

    def loss() -> Tensor:
        # It takes log-probabilities, so making them is part of it.
        value: Tensor = module(inputs.student.log_softmax(-1), inputs.teacher.log_softmax(-1))
        return value

    return loss


def _liger_chunk_logits(case: Case) -> int:
    return 8 * min(case.rows, 2 * _LIGER_CHUNK) * case.pair.vocab * 4


def _peer(name: str, prepare: Callable[[Any], Loss], **more: Any) -> Contestant:
    return Contestant(name=name, kind=PEER, prepare=prepare, **more)


_PEERS: dict[str, list[Contestant]] = {
    "step_kl": [_peer("Liger LigerJSD", _liger_jsd, needed_bytes=float_logits(6))],
    "linear_step_kl": [
        _peer("TRL ChunkedDivergenceFunction", _trl, needed_bytes=no_extra),
        _peer(
            "Liger LigerFusedLinearJSDLoss (chunked)",
            _liger_chunked,
            is_compiled=True,
            needed_bytes=_liger_chunk_logits,
        ),
        _peer("Liger LigerFusedLinearJSD", _liger_linear_jsd, needed_bytes=float_logits(1)),
        _peer("fla FusedKLDivLoss (forward KL)", _fla, divergence="forward_kl"),
    ],
    "topk_step_kl": [],
}


def peer_contestants(op: str) -> list[Contestant]:
    """List the peers that compute an op.

    Args:
        op: "step_kl", "linear_step_kl" or "topk_step_kl".

    Returns:
        Contestants; empty where no peer has the op.
    """
    return _PEERS[op]
