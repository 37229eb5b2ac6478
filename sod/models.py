"""Students, teachers and tokenizers: loading them, building small ones, and proving that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sod.config_teachers import ModelSection, TokenizerSource
from sod.errors import ModelError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_model(section: ModelSection, *, device: torch.device | None = None) -> PreTrainedModel:
    """Load a causal language model from a folder or from the hub.

    Args:
        section: Where it is, and how to load it.
        device: Where to put it; None for the CPU.

    Returns:
        The model in evaluation mode.

    Raises:
        ModelError: If there is none, it cannot be read, or weights are missing from it.
    """
    _check_folder(section)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            section.model,
            revision=section.revision or "main",
            dtype=DTYPES[section.dtype],
            attn_implementation=section.attention,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(_load_failure(section, "model", error)) from error
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"[{section.section}] model = {section.model!r}: {len(missing)} weights are missing from the "
            f"checkpoint, the first is {missing[0]!r}; they would be random. Give a complete checkpoint."
        )
    return place(model, device or torch.device("cpu"))


def load_architecture(section: ModelSection) -> PreTrainedModel:
    """Build the model of a checkpoint without its weights, on the meta device.

    Args:
        section: Where it is, and the dtype of its weights.

    Returns:
        The model; its parameters have shapes and dtypes, and no memory.

    Raises:
        ModelError: If there is none or its settings cannot be read.
    """
    _check_folder(section)
    try:
        config = AutoConfig.from_pretrained(section.model, revision=section.revision or "main")
        with torch.device("meta"):
            build: Any = AutoModelForCausalLM
            model: PreTrainedModel = build.from_config(config, dtype=DTYPES[section.dtype])
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(_load_failure(section, "model", error)) from error
    return model


def place(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """Put a model on a device and in evaluation mode."""
    module: Any = model
    placed: PreTrainedModel = module.to(device).train(False)
    return placed


def load_tokenizer(section: TokenizerSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer that lies with a model.

    Args:
        section: Where the model is.

    Returns:
        The tokenizer.

    Raises:
        ModelError: If there is none or it cannot be read.
    """
    _check_folder(section)
    try:
        tokenizer = AutoTokenizer.from_pretrained(section.model, revision=section.revision or "main")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(_load_failure(section, "tokenizer", error)) from error
    result: PreTrainedTokenizerBase = tokenizer
    return result


def check_same_tokenizer(
    student: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, role: str = "teacher"
) -> None:
    """Prove that every token id means the same text to the student and to another model.

    Args:
        student: The student's tokenizer.
        other: That of the other.
        role: Who the other is: "teacher" or "reference".

    Raises:
        ModelError: With the number of ids that differ and the first of them.
    """
    student_tokens = {index: token for token, index in student.get_vocab().items()}
    other_tokens = {index: token for token, index in other.get_vocab().items()}
    differing = sorted(
        index
        for index in student_tokens.keys() | other_tokens.keys()
        if student_tokens.get(index) != other_tokens.get(index)
    )
    if differing:
        first = differing[0]
        remedy = ', or [algorithm] name = "simct"' if role == "teacher" else ""
        raise ModelError(
            f"check_same_tokenizer: student ({len(student_tokens)} tokens) and {role} "
            f"({len(other_tokens)} tokens) differ at {len(differing)} ids; the first is id {first}: "
            f"student {student_tokens.get(first)!r}, {role} {other_tokens.get(first)!r}. "
            f"Take a {role} with the student's tokenizer{remedy}."
        )


def check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, role: str) -> None:
    """Prove that a model scores every id that the tokenizer can give.

    Args:
        model: The model.
        tokenizer: The tokenizer.
        role: "student" or "teacher", for the message.

    Raises:
        ModelError: If the embedding has fewer rows than the tokenizer has tokens.
    """
    embedding: Any = model.get_input_embeddings()
    rows = int(embedding.weight.shape[0])
    largest = max(tokenizer.get_vocab().values())
    if largest >= rows:
        raise ModelError(
            f"{role}: the model has {rows} embedding rows, but the tokenizer gives ids up to {largest}; "
            "resize the embedding or take the tokenizer that belongs to the model"
        )


def build_qwen3(
    *,
    vocab_size: int,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    intermediate_size: int,
    max_positions: int,
    seed: int,
    eos_id: int | None = None,
    pad_id: int | None = None,
) -> PreTrainedModel:
    """Build a small Qwen3-architecture model with tied embeddings and random weights.

    Args:
        vocab_size: Rows of the embedding.
        hidden_size: Width, a multiple of `num_heads`.
        num_layers: Decoder layers.
        num_heads: Attention heads, as many for keys and values.
        intermediate_size: Width of the feed-forward layers.
        max_positions: Longest sequence in tokens.
        seed: Of the random weights; the global generator of torch is left as it was.
        eos_id: Token id that ends a text.
        pad_id: Token id of padding.

    Returns:
        The model on the CPU, float32.

    Raises:
        ValueError: If `hidden_size` is no multiple of `num_heads`.
    """
    if hidden_size % num_heads:
        raise ValueError(
            f"build_qwen3: hidden_size = {hidden_size} is no multiple of num_heads = {num_heads}; change one"
        )
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_id,
        pad_token_id=pad_id,
    )
    return _seeded(config, seed)


def _seeded(config: Qwen3Config, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Put the weights of a checkpoint folder into a model of the same shape.

    Args:
        model: Changed in place.
        folder: Hugging Face folder.

    Raises:
        ModelError: If the folder cannot be read or holds another shape of model.
    """
    try:
        loaded = type(model).from_pretrained(folder, dtype=model.dtype)
        model.load_state_dict(loaded.state_dict())
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"load_weights: {folder} does not hold weights for this model: {error}") from error


def is_on_hub(section: TokenizerSource) -> bool:
    """Say whether a checkpoint is named and no folder of this machine."""
    return not Path(section.model).is_absolute() and not section.model.startswith(".")


def _check_folder(section: TokenizerSource) -> None:
    path = Path(section.model)
    if is_on_hub(section):
        return
    if not (path / "config.json").is_file():
        what = "no config.json in it" if path.is_dir() else "no such folder"
        raise ModelError(
            f"[{section.section}] model = {section.model!r}: {what}; wanted a Hugging Face checkpoint folder "
            "or a name on the hub such as 'Qwen/Qwen3-0.6B'"
        )


def _load_failure(section: TokenizerSource, what: str, error: Exception) -> str:
    reason: Any = str(error).strip().splitlines()
    return (
        f"[{section.section}] model = {section.model!r}: the {what} cannot be loaded: "
        f"{reason[0] if reason else type(error).__name__}. If it is a name on the hub: check its spelling, "
        "your network and your access rights, or download it and give the folder. "
        "If it is a folder: check that it is complete."
    )
