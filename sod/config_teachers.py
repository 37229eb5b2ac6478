"""Settings of teachers that are not loaded in this process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sod.config_algorithms import AlgorithmSection
from sod.config_engines import check_url
from sod.config_schema import Above, AtLeast, PathOrName, Section
from sod.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TokenizerSource(Section):
    """Where a checkpoint lies, its tokenizer with it."""

    model: Annotated[str, PathOrName()]
    """Folder of the checkpoint, or its name on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub; None for the default branch."""


def check_listing_teacher(
    teacher: VLLMTeacherSection, algorithm: AlgorithmSection, sampling_temperature: float
) -> None:
    """Prove that what a server can list is what an algorithm reads.

    Args:
        teacher: The teacher's settings.
        algorithm: The algorithm's.
        sampling_temperature: Of the rollouts.

    Raises:
        ConfigError: Naming the setting that does not fit.
    """
    name, where = algorithm.name, f'[teacher] name = "{teacher.name}"'
    if algorithm.needs_reference:
        raise ConfigError(
            f'{where} lists log-probs of a few ids, but algorithm "{name}" compares full logits of teacher '
            'and reference; wanted name = "local"'
        )
    if not algorithm.needs_equal_ids:
        raise ConfigError(
            f'{where} lists log-probs of a few ids, but algorithm "{name}" compares full logits with a '
            'teacher of another tokenizer; wanted name = "local"'
        )
    if teacher.num_top == 0 and getattr(algorithm, "form", "vocab") == "vocab":
        raise ConfigError(
            f'[teacher] num_top = 0 lists the sampled id alone, but form = "vocab" of algorithm "{name}" '
            'compares distributions; wanted num_top above 0, or form = "sampled"'
        )
    chosen = getattr(algorithm, "temperature", None)
    temperature = sampling_temperature if algorithm.has_ratio and chosen is None else chosen or 1.0
    if temperature != 1.0:
        setting = "[rollout]" if chosen is None else "[algorithm]"
        raise ConfigError(
            f"{setting} temperature = {temperature:g} divides the logits of student and teacher, but {where} "
            "gives log-probs at temperature 1; wanted 1"
        )


@dataclass(frozen=True, kw_only=True)
class VLLMTeacherSection(TokenizerSource):
    """A teacher behind a vLLM server; `model` is what it serves, of which only the tokenizer is read here."""

    section: ClassVar[str] = "teacher"
    name: Literal["vllm_server"] = "vllm_server"
    """Name of the kind of teacher."""
    url: str
    """Where it listens, as http://host:port."""
    num_top: Annotated[int, AtLeast(0)] = 32
    """Most likely ids that it lists per token beside the sampled one, at most the server's --max-logprobs; 0
    for the sampled one alone."""
    max_concurrency: Annotated[int, AtLeast(1)] = 16
    """Requests in flight at the same time."""
    timeout_s: Annotated[float, Above(0)] = 600.0
    """Longest wait for an answer, in seconds."""
    max_attempts: Annotated[int, AtLeast(1)] = 5
    """How often a request is tried that fails on the way; the run then stops so that it can be resumed."""
    retry_wait_s: Annotated[float, AtLeast(0)] = 1.0
    """Wait in seconds before the second attempt; every further one waits twice as long."""

    def __post_init__(self) -> None:
        """Check types, ranges and the address."""
        super().__post_init__()
        check_url("[teacher] url", self.url)
