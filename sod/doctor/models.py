"""Examines checkpoints and tokenizers without reading a weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from sod.chat import ChatRenderer
from sod.config_teachers import ModelSection
from sod.doctor.findings import Findings, Level
from sod.models import check_vocabulary, is_on_hub, load_architecture, load_tokenizer

# Settings by which models scale their logits after the head, as transformers names them.
_LOGIT_CHANGES = ("logit_scale", "logits_scaling")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model to be, and its tokenizer.

    Attributes:
        section: Where it is.
        model: Without weights, on the meta device.
        tokenizer: Its tokenizer.
    """

    section: ModelSection
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def examine_checkpoint(
    findings: Findings, section: ModelSection, max_tokens: int, *, is_offline: bool = False
) -> Checkpoint | None:
    """Examine one checkpoint by itself.

    Args:
        findings: Written to.
        section: [student] or [teacher].
        max_tokens: Longest sequence that it will read.
        is_offline: Leave it alone where it is on the hub.

    Returns:
        The checkpoint, None where it cannot be read.
    """
    role = section.section
    if is_offline and is_on_hub(section):
        text = f"not checked: {section.model} is on the hub; tokenizer and template are read there"
        findings.add(role, "checkpoint", text, Level.NOTE)
        return None
    checkpoint = None
    with findings.examining(role, "checkpoint"):
        tokenizer = load_tokenizer(section)
        model = load_architecture(section)
        shape: Any = model.config.get_text_config()
        count = sum(parameter.numel() for parameter in model.parameters())
        is_tied = "tied" if shape.tie_word_embeddings else "untied"
        text = f"{type(model).__name__}, {count / 1e6:,.1f}M parameters, {is_tied} embeddings"
        findings.add(role, "checkpoint", text)
        checkpoint = Checkpoint(section=section, model=model, tokenizer=tokenizer)
        _examine_vocabulary(findings, checkpoint)
        _examine_logits(findings, role, shape)
        _examine_context(findings, role, shape, max_tokens)
    return checkpoint


def examine_stops(findings: Findings, checkpoint: Checkpoint, renderer: ChatRenderer) -> None:
    """Compare the tokens that end a turn in this run with those of the checkpoint's own generation settings.

    Args:
        findings: Written to.
        checkpoint: Student or teacher.
        renderer: The run's.
    """
    role = checkpoint.section.section
    section = checkpoint.section
    try:
        settings = GenerationConfig.from_pretrained(section.model, revision=section.revision or "main")
        listed: Any = settings.eos_token_id
    except OSError:
        listed = checkpoint.model.config.get_text_config().eos_token_id
    own = set() if listed is None else {listed} if isinstance(listed, int) else set(listed)
    run = set(renderer.stop_ids)
    text = f"a turn ends at {_named(run, checkpoint)}"
    if not own or own & run:
        others = own - run
        more = f"; the checkpoint also stops at {_named(others, checkpoint)}" if others else ""
        findings.add(role, "stop tokens", text + more, Level.NOTE if others else Level.OK)
        return
    findings.add(
        role,
        "stop tokens",
        f"{text}, but the checkpoint's generation settings stop at {_named(own, checkpoint)}: it may never "
        "have learnt to end a turn as this template does. Take the checkpoint's own template, or start with "
        "sft.",
        Level.WARNING,
    )


def _examine_vocabulary(findings: Findings, checkpoint: Checkpoint) -> None:
    role = checkpoint.section.section
    check_vocabulary(checkpoint.model, checkpoint.tokenizer, role)
    embedding: Any = checkpoint.model.get_input_embeddings()
    rows, tokens = int(embedding.weight.shape[0]), max(checkpoint.tokenizer.get_vocab().values()) + 1
    padding = f"; {rows - tokens:,} columns beyond are left out of sampling and loss" if rows > tokens else ""
    findings.add(role, "vocabulary", f"{tokens:,} tokens in {rows:,} columns{padding}")


def _examine_logits(findings: Findings, role: str, shape: Any) -> None:
    changes = {name: getattr(shape, name, None) for name in _LOGIT_CHANGES}
    found = [f"{name} = {value}" for name, value in changes.items() if value not in (None, 1, 1.0)]
    if found:
        findings.add(
            role,
            "logits",
            f"scaled after the head: {', '.join(found)}; the loop scores hidden states times the head, "
            "capped or not, and refuses such models. Take another checkpoint.",
            Level.FATAL,
        )
    else:
        cap = getattr(shape, "final_logit_softcapping", None)
        findings.add(
            role, "logits", f"the head's own: {'no cap' if cap is None else f'cap {cap:g}'}, no scale"
        )


def _examine_context(findings: Findings, role: str, shape: Any, wanted: int) -> None:
    limit = getattr(shape, "max_position_embeddings", None)
    if limit is None:
        findings.add(role, "context", "the checkpoint states no limit", Level.NOTE)
    elif limit < wanted:
        text = f"{limit:,} positions, but it reads up to {wanted:,} tokens"
        findings.add(role, "context", f"{text}; lower [rollout] max_trajectory_tokens", Level.FATAL)
    else:
        findings.add(role, "context", f"{limit:,} positions for trajectories of at most {wanted:,} tokens")


def _named(ids: set[int], checkpoint: Checkpoint) -> str:
    tokens = (f"{checkpoint.tokenizer.decode([index])!r} ({index})" for index in sorted(ids))
    return ", ".join(tokens)
