"""The errors of the training loop: one tree, so that a caller can catch `SodError` alone."""


class SodError(Exception):
    """Root of every error that the loop raises on purpose."""


class ConfigError(SodError):
    """A setting is unknown, misspelt, out of range or does not apply to what it is set for."""


class DataError(SodError):
    """A task file, a trajectory file or one of their rows cannot be used."""


class ModelError(SodError):
    """A checkpoint or tokenizer is missing, unreadable or does not fit its partner."""


class TemplateError(SodError):
    """A chat template cannot be extended turn by turn without changing what came before."""


class TranslationError(SodError):
    """What a student wrote cannot be given to a teacher in the teacher's own tokens."""


class SandboxUnavailableError(SodError):
    """Isolation cannot be had on this machine; the message says what to install or allow."""


class ToolDefinitionError(SodError):
    """A Python function cannot be offered as a tool."""


class RolloutError(SodError):
    """A rollout could not be finished and must not be trained on."""


class WeightSyncError(RolloutError):
    """The weights of an engine are not those of the trainer; nothing may be sampled with them."""


class ServiceUnavailableError(SodError):
    """A server stays out of reach; the run can be resumed when it is back."""


class CheckpointError(SodError):
    """A checkpoint is absent, incomplete or belongs to another run."""


class TrainingError(SodError):
    """The optimisation cannot go on; the latest checkpoint is whole."""
