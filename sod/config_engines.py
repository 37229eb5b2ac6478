"""Settings of the rollout engines: who samples, and how the weights get there."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sod.config_schema import Above, AtLeast, AtMost, Section
from sod.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class BaseEngineSection(Section):
    """What every engine can set."""

    section: ClassVar[str] = "engine"
    weight_bound: Annotated[float, Above(0)] | None = None
    """Largest gap in nats between engine and trainer on a fixed text after each update of the weights; None:
    0.001, with bfloat16 0.5."""


@dataclass(frozen=True, kw_only=True)
class LockstepSection(BaseEngineSection):
    """The trained module itself, decoded in one growing batch; needs nothing beside it."""

    name: Literal["lockstep"] = "lockstep"
    """Name of the engine."""


@dataclass(frozen=True, kw_only=True)
class ContinuousSection(BaseEngineSection):
    """The trained module itself under the continuous batching of transformers, for rows of unlike lengths."""

    name: Literal["continuous"] = "continuous"
    """Name of the engine."""
    page_size: Annotated[int, AtLeast(1)] = 16
    """Tokens in a page of the cache."""
    num_pages: Annotated[int, AtLeast(1)] = 4096
    """Pages of the cache."""
    max_batch_tokens: Annotated[int, AtLeast(1)] = 1024
    """Tokens that the model reads in one pass."""


@dataclass(frozen=True, kw_only=True)
class VLLMSection(BaseEngineSection):
    """vLLM in the training process."""

    name: Literal["vllm"] = "vllm"
    """Name of the engine."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of its weights and products."""
    weight_transfer: Literal["auto", "reload", "ipc"] = "auto"
    """How weights get there: "reload" copies them through the loader, "ipc" shares GPU memory; "auto" takes
    "ipc" on CUDA."""
    gpu_memory_fraction: Annotated[float, Above(0), AtMost(1)] = 0.4
    """Share of the GPU's memory that it may use; not read on a CPU."""
    kv_cache_mib: Annotated[int, AtLeast(1)] = 1024
    """Memory of its cache in MiB on a CPU; on CUDA `gpu_memory_fraction` decides."""
    enforce_eager: bool = False
    """Run without CUDA graphs and compilation: starts sooner, samples slower."""


@dataclass(frozen=True, kw_only=True)
class VLLMServerSection(BaseEngineSection):
    """A vLLM server that was started by itself, see docs/engines.md."""

    name: Literal["vllm_server"] = "vllm_server"
    """Name of the engine."""
    url: str
    """Where it listens, as http://host:port."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type that the server computes in; chooses the default of `weight_bound`."""
    weight_transfer: Literal["folder", "nccl"] = "folder"
    """How weights get there: "folder" through a folder that both sides see, "nccl" from GPU to GPU."""
    folder: Path | None = None
    """Folder that trainer and server both see under this path, for "folder"."""
    master_address: str | None = None
    """Address of this machine as the server's workers see it, for "nccl"."""
    master_port: Annotated[int, Above(0)] | None = None
    """Free port on this machine, for "nccl"."""
    num_workers: Annotated[int, AtLeast(1)] | None = None
    """GPUs that the server runs on, for "nccl"."""
    timeout_s: Annotated[float, Above(0)] = 600.0
    """Deadline of one request in seconds, waiting in the server's queue included."""
    max_attempts: Annotated[int, AtLeast(1)] = 5
    """How often a request is tried that fails on the way; the run then stops so that it can be resumed."""
    retry_wait_s: Annotated[float, AtLeast(0)] = 1.0
    """Wait in seconds before the second attempt; every further one waits twice as long."""

    def __post_init__(self) -> None:
        """Check types, ranges, the address and the settings of the chosen transfer."""
        super().__post_init__()
        check_url("[engine] url", self.url)
        of_nccl = ("master_address", "master_port", "num_workers")
        wanted = ("folder",) if self.weight_transfer == "folder" else of_nccl
        for item in fields(self):
            if item.name not in ("folder", *of_nccl):
                continue
            is_set = getattr(self, item.name) is not None
            if is_set and item.name not in wanted:
                other = "folder" if item.name == "folder" else "nccl"
                raise ConfigError(
                    f'[engine] {item.name} belongs to weight_transfer = "{other}", but weight_transfer = '
                    f'"{self.weight_transfer}"; remove one of the two'
                )
            if not is_set and item.name in wanted:
                raise ConfigError(
                    f'[engine] {item.name} is missing; weight_transfer = "{self.weight_transfer}" needs it'
                )


@dataclass(frozen=True, kw_only=True)
class ReplaySection(BaseEngineSection):
    """Plays the stored trajectories of another run; `sod replay` sets it."""

    name: Literal["replay"] = "replay"
    """Name of the engine."""
    run: Path
    """Folder of that run."""


EngineSection = LockstepSection | ContinuousSection | VLLMSection | VLLMServerSection | ReplaySection

ENGINES: dict[str, type[Section]] = {
    "lockstep": LockstepSection,
    "continuous": ContinuousSection,
    "vllm": VLLMSection,
    "vllm_server": VLLMServerSection,
    "replay": ReplaySection,
}


def check_precision(engine: EngineSection, precision: str) -> None:
    """Prove that an engine samples in the type that the trainer computes in.

    Args:
        engine: Its settings.
        precision: `[trainer] precision`.

    Raises:
        ConfigError: For "bfloat16" where autocast does not reach the engine.
    """
    if isinstance(engine, ContinuousSection) and precision == "bfloat16":
        raise ConfigError(
            '[trainer] precision = "bfloat16": engine "continuous" samples in the type of the weights, in a '
            'thread that autocast does not reach; wanted "float32" (with [student] dtype = "bfloat16" all is '
            'bfloat16), or engine "lockstep"'
        )


def check_url(name: str, url: str) -> None:
    """Prove that a setting is the address of a server.

    Args:
        name: The setting as people see it.
        url: What was given.

    Raises:
        ConfigError: If it does not begin with http:// or https://, or goes on behind the host.
    """
    scheme, separator, rest = url.partition("://")
    if scheme not in ("http", "https") or not separator or not rest or "/" in rest.rstrip("/"):
        raise ConfigError(
            f"{name} = {url!r}: wanted an address such as 'http://127.0.0.1:8000', without a path"
        )
