"""Settings of the models that score: where they are, what they give, how long it is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from sod.chat_templates import TemplateName
from sod.config_algorithms import AlgorithmSection, PrivilegedSection
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


@dataclass(frozen=True, kw_only=True)
class ModelSection(TokenizerSource):
    """A checkpoint in the Hugging Face format."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type that the weights are kept in."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention code of transformers."""


@dataclass(frozen=True, kw_only=True)
class ReferenceSection(ModelSection):
    """The policy that "stm" holds steps to, where it is not the one that the run starts from."""

    section: ClassVar[str] = "reference"


@dataclass(frozen=True, kw_only=True)
class KeptScores(TokenizerSource):
    """How long what a teacher said is kept."""

    section: ClassVar[str] = "teacher"
    keep_scores: Literal["round", "run", "folder"] = "round"
    """"round" keeps scores in memory over its epochs; "run" and "folder" keep the `num_top` most likely ids
    of every token on disk too, in the run folder or in `scores_folder`, for whoever scores it again."""
    scores_folder: Path | None = None
    """Folder for keep_scores = "folder"; runs and teachers may share it."""

    @property
    def is_listing(self) -> bool:
        """Whether log-probs of a few ids are all that it gives."""
        return self.keep_scores != "round"

    def __post_init__(self) -> None:
        """Check types, ranges and that the folder is given exactly where it is read."""
        super().__post_init__()
        if (self.scores_folder is not None) != (self.keep_scores == "folder"):
            what = "is missing" if self.scores_folder is None else f"= {str(self.scores_folder)!r}"
            raise ConfigError(
                f'[teacher] scores_folder {what}: it belongs to keep_scores = "folder", and here '
                f'keep_scores = "{self.keep_scores}"; give both or none'
            )


@dataclass(frozen=True, kw_only=True)
class TeacherSection(ModelSection, KeptScores):
    """The frozen model that the student learns from; but for "simct" it shares the student's tokenizer."""

    section: ClassVar[str] = "teacher"
    name: Literal["local"] = "local"
    """Name of the kind of teacher."""
    chat_template: Literal["own", TemplateName] = "own"
    """For "simct": template in which the teacher reads; "own" is the checkpoint's, see docs/tokens.md."""
    enable_thinking: bool | None = None
    """For "simct": passed to the teacher's template; None leaves the template's own default."""
    offload: bool = False
    """Keep its weights in host memory, but for a phase of each round in which it scores all of it; see
    docs/engines.md. A reference policy goes with it."""
    num_top: Annotated[int, AtLeast(1)] = 32
    """Most likely ids that are kept per token beside the sampled one, where scores are kept on disk."""

    def __post_init__(self) -> None:
        """Check types, ranges and that `num_top` is read at all."""
        super().__post_init__()
        if self.num_top != 32 and not self.is_listing:
            raise ConfigError(
                f"[teacher] num_top = {self.num_top}: belongs to scores that are kept on disk; remove it, "
                'or set keep_scores = "run" or "folder"'
            )


@dataclass(frozen=True, kw_only=True)
class VLLMTeacherSection(KeptScores):
    """A teacher behind a vLLM server; `model` is what it serves, of which only the tokenizer is read here."""

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

    @property
    def is_listing(self) -> bool:
        """It never gives more than a list."""
        return True

    def __post_init__(self) -> None:
        """Check types, ranges and the address."""
        super().__post_init__()
        check_url("[teacher] url", self.url)


@dataclass(frozen=True, kw_only=True)
class SelfTeacherSection(Section):
    """The student itself, which is told what it does not read as the student."""

    section: ClassVar[str] = "teacher"
    name: Literal["self"] = "self"
    """Name of the kind of teacher."""
    weights: Literal["start", "current"] = "start"
    """"start" is the policy that the run started from, frozen; "current" the student as it stands."""
    offload: bool = False
    """As for a local teacher; for weights = "start"."""

    def __post_init__(self) -> None:
        """Check types and that there are weights to offload."""
        super().__post_init__()
        if self.offload and self.weights == "current":
            raise ConfigError(
                '[teacher] offload = true: belongs to weights = "start", but weights = "current" scores with '
                "the student itself, which has to be on the device; remove one of the two"
            )


@dataclass(frozen=True, kw_only=True)
class RoutedTeacherSection(Section):
    """Several teachers, each for the tasks that name it; every route is a [teacher] section of its own."""

    section: ClassVar[str] = "teacher"
    name: Literal["routed"] = "routed"
    """Name of the kind of teacher."""
    route_field: str = "data_source"
    """Column of [data] train that names the route of a task."""
    routes: Mapping[str, TeacherSection | VLLMTeacherSection]
    """The teachers by route: [teacher.routes.math], [teacher.routes.code] and so on."""


AnyTeacherSection = TeacherSection | VLLMTeacherSection | SelfTeacherSection | RoutedTeacherSection

ROUTES: dict[str, type[Section]] = {"local": TeacherSection, "vllm_server": VLLMTeacherSection}
TEACHERS: dict[str, type[Section]] = {**ROUTES, "self": SelfTeacherSection, "routed": RoutedTeacherSection}


def teacher_checkpoints(teacher: AnyTeacherSection | None) -> tuple[TeacherSection | VLLMTeacherSection, ...]:
    """Give the sections of a teacher that name a checkpoint: one, one per route, or none."""
    if isinstance(teacher, RoutedTeacherSection):
        return tuple(teacher.routes.values())
    return () if teacher is None or isinstance(teacher, SelfTeacherSection) else (teacher,)


def is_offloading(teacher: AnyTeacherSection | None) -> bool:
    """Say whether a model of the teacher is to wait in host memory."""
    parts = teacher.routes.values() if isinstance(teacher, RoutedTeacherSection) else (teacher,)
    return any(isinstance(one, TeacherSection | SelfTeacherSection) and one.offload for one in parts)


def check_teacher(
    teacher: AnyTeacherSection, algorithm: AlgorithmSection, sampling_temperature: float
) -> None:
    """Prove that a teacher gives what an algorithm reads, as far as settings tell.

    Args:
        teacher: The teacher's settings.
        algorithm: The algorithm's.
        sampling_temperature: Of the rollouts.

    Raises:
        ConfigError: Naming the setting that does not fit.
    """
    if isinstance(teacher, SelfTeacherSection) and not isinstance(algorithm, PrivilegedSection):
        raise ConfigError(
            f'[teacher] name = "self" has nothing to teach with algorithm "{algorithm.name}", where it reads '
            'what the student reads; wanted algorithm "opsd_gt" or "opsd_hint", or another teacher'
        )
    if isinstance(teacher, RoutedTeacherSection) and algorithm.reads_expert:
        raise ConfigError(
            f'[teacher] name = "routed" goes by tasks, but algorithm "{algorithm.name}" reads expert '
            "conversations too, which name no route; wanted one teacher"
        )
    if isinstance(teacher, RoutedTeacherSection) and not algorithm.needs_equal_ids:
        raise ConfigError(
            f'[teacher] name = "routed" has several tokenizers, but algorithm "{algorithm.name}" pairs the '
            "student's with one; wanted one teacher"
        )
    for section in teacher_checkpoints(teacher):
        if isinstance(section, TeacherSection) and algorithm.needs_equal_ids:
            _check_template(section, algorithm.name)
        if section.is_listing:
            _check_listing(section, algorithm, sampling_temperature)


def _check_template(teacher: TeacherSection, algorithm: str) -> None:
    """Refuse settings of the teacher's template where it reads the student's ids."""
    for key, default in (("chat_template", "own"), ("enable_thinking", None)):
        value = getattr(teacher, key)
        if value != default:
            raise ConfigError(
                f'[teacher] {key} = {value!r}: belongs to algorithm "simct", whose teacher reads in a '
                f'template of its own, but [algorithm] name = "{algorithm}"; remove it'
            )


def _check_listing(
    teacher: TeacherSection | VLLMTeacherSection, algorithm: AlgorithmSection, sampling_temperature: float
) -> None:
    name, kept = algorithm.name, "" if teacher.name == "vllm_server" else " with scores kept on disk"
    where = f'[teacher] name = "{teacher.name}"{kept}'
    if algorithm.needs_reference:
        raise ConfigError(
            f'{where} lists log-probs of a few ids, but algorithm "{name}" compares full logits of teacher '
            'and reference; wanted name = "local" and keep_scores = "round"'
        )
    if not algorithm.needs_equal_ids:
        raise ConfigError(
            f'{where} lists log-probs of a few ids, but algorithm "{name}" compares full logits with a '
            'teacher of another tokenizer; wanted name = "local" and keep_scores = "round"'
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
