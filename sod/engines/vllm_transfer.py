"""Weights from GPU to GPU by vLLM's own transfer: shared memory on one machine, NCCL to a server.

Needs CUDA on both sides.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

from torch import nn


class TransferClient(Protocol):
    """The calls by which vLLM is told of a transfer."""

    def init_weight_transfer_engine(self, init_info: Any) -> None:
        """Open the receiving side."""

    def start_weight_update(self) -> None:
        """Begin an update."""

    def update_weights(self, update_info: Any) -> None:
        """Receive what is being sent."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """End the update."""


class TrainerLink:
    """The sending side, bound to one module."""

    def __init__(self, engine: Any) -> None:
        """Keep vLLM's trainer engine."""
        self._engine = engine

    def send(self) -> None:
        """Send the module's weights as they are now."""
        self._engine.send_weights()

    def close(self) -> None:
        """Leave the transfer's process group."""
        self._engine.shutdown()


def open_link(
    client: TransferClient,
    model: nn.Module,
    *,
    backend: Literal["ipc", "nccl"],
    master_address: str = "",
    master_port: int = 0,
    num_workers: int = 1,
) -> TrainerLink:
    """Open both sides of a transfer.

    Args:
        client: Reaches the receiving vLLM.
        model: The trained module, on CUDA.
        backend: "ipc" shares memory on one GPU, "nccl" sends over the network.
        master_address: Address of this machine, for "nccl".
        master_port: Free port of it, for "nccl".
        num_workers: Receiving GPUs, for "nccl".

    Returns:
        The link.
    """
    from vllm.distributed.weight_transfer.base import ModuleSource
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    info: Any
    if backend == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        info = IPCTrainerInitInfo(rank=0)
    else:
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        info = NCCLTrainerInitInfo(
            rank=0, master_address=master_address, master_port=master_port, world_size=num_workers + 1
        )
    source = ModuleSource(model)
    return TrainerLink(WeightTransferTrainerFactory.trainer_init(info, client=client, source=source))
