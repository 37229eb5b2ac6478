"""Checkpoints that are either whole or not there.

A checkpoint is written to a temporary folder, brought to the disk, and renamed; the `latest` pointer
follows last. Whatever moment the process dies at, `latest` names a whole checkpoint.

Random generators have no state to save: they are seeded anew from the root seed and the place in the run, at
every rollout, update and evaluation (`sod.seeding`). The learning rate is a function of the update alone.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sod.errors import CheckpointError

STATE_FILE = "trainer_state.json"
TENSOR_FILE = "trainer_state.pt"
SIZES_FILE = "files.json"
"""Size in bytes of every file of the checkpoint: what is cut off shows."""
POINTER = "latest"
TEMPORARY_PREFIX = "tmp-"
DAMAGED_PREFIX = "damaged-"
VERSION = 2
_UNREADABLE = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RuntimeError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True, kw_only=True)
class TrainerState:
    """Where a run stands; everything besides weights and optimiser.

    Attributes:
        round: Rounds finished.
        update: Updates made or skipped.
        cursor: Tasks (or expert trajectories) taken from the data stream.
        updates_in_round: Updates made from the round that is not finished; 0 between rounds.
        num_skipped: Updates skipped for a gradient that was not finite.
        num_skipped_in_a_row: Those since the last update that was made.
        has_warned_anchor: Whether the warning about a collapsed anchor was given.
        divergence_anchor: Running quantile of the step divergences, nats; None before the first update.
        file_bytes: Size of each metrics file at this point.
        round_metrics: Metrics of the updates of the unfinished round.
        round_steps: Per turn of the unfinished round: number of steps, sum of divergences, of weights.
    """

    round: int = 0
    update: int = 0
    cursor: int = 0
    updates_in_round: int = 0
    num_skipped: int = 0
    num_skipped_in_a_row: int = 0
    has_warned_anchor: bool = False
    divergence_anchor: float | None = None
    file_bytes: Mapping[str, int] = field(default_factory=dict)
    round_metrics: Sequence[Mapping[str, float]] = ()
    round_steps: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Folder name of the checkpoint of this state."""
        return f"round_{self.round:05d}_update_{self.update:07d}"


def save_checkpoint(
    root: Path,
    state: TrainerState,
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    optimizer_state: Sequence[Mapping[str, Any]],
    keep_last: int,
) -> Path:
    """Write a checkpoint and make it the latest.

    Args:
        root: Folder of all checkpoints of the run.
        state: Where the run stands.
        model: Saved in the Hugging Face form.
        tokenizer: Saved next to it.
        optimizer_state: `OptimizerSet.state_dict()`.
        keep_last: Checkpoints that stay, this one included.

    Returns:
        Its folder.

    Raises:
        CheckpointError: If it cannot be written; the checkpoints before it stay as they are.
    """
    target = root / state.name
    if _pointed(root) == state.name and target.is_dir():
        return target
    temporary = root / f"{TEMPORARY_PREFIX}{state.name}"
    try:
        _remove(target)
        _remove(temporary)
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        torch.save({"optimizer": list(optimizer_state)}, temporary / TENSOR_FILE)
        text = json.dumps({"version": VERSION, **asdict(state)}, indent=1)
        (temporary / STATE_FILE).write_text(text, encoding="utf-8")
        (temporary / SIZES_FILE).write_text(json.dumps(_sizes(temporary), indent=1), encoding="utf-8")
        _sync_tree(temporary)
        temporary.rename(target)
        _sync_folder(root)
        _write_pointer(root, state.name)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise CheckpointError(
            f"save_checkpoint: {target} could not be written ({error}); the checkpoints before it are whole. "
            "Free disk space or give another [run] output, then use --resume."
        ) from error
    _keep(root, keep_last, state.name)
    return target


def latest_checkpoint(root: Path) -> Path | None:
    """Give the folder of the latest whole checkpoint, None before the first.

    Raises:
        CheckpointError: If the pointer names a checkpoint that is gone or damaged.
    """
    name = _pointed(root)
    if name is None:
        return None
    problem = _problem(root / name)
    if problem is not None:
        raise CheckpointError(
            f"latest_checkpoint: {root / POINTER} names {name!r}, but that is no whole checkpoint: "
            f"{problem}; go on by --resume, which takes the last whole one"
        )
    return root / name


class Recovered(NamedTuple):
    """What a resumed run goes on from, and what was wrong with later checkpoints; None where nothing was."""

    folder: Path
    state: TrainerState
    optimizer_state: list[dict[str, Any]]
    problem: str | None

    @property
    def description(self) -> str:
        """Where the run goes on."""
        state = self.state
        return f"resumed after {state.round} rounds and {state.update} updates from {self.folder.name}"


def recover_checkpoint(root: Path) -> Recovered | None:
    """Read the last whole checkpoint, and put damaged ones that came after it out of the way.

    A checkpoint that the disk has lost a part of is renamed to `damaged-...` and kept; `latest` then names
    the one that is taken. What a killed process left unfinished is removed.

    Args:
        root: Folder of all checkpoints of the run.

    Returns:
        The checkpoint, None before the first.

    Raises:
        CheckpointError: If there were checkpoints and none of them is whole.
    """
    name = _pointed(root)
    if name is None:
        discard_after(root, None)
        return None
    # Folders beyond the pointer were never finished; an empty pointer points nowhere.
    found = {entry.name for entry in root.iterdir() if entry.name.startswith("round_")}
    candidates = sorted({one for one in found if not name or one < name} | {name} - {""}, reverse=True)
    problems: list[str] = []
    for position, candidate in enumerate(candidates):
        folder = root / candidate
        problem = _problem(folder)
        if problem is None:
            try:
                state, optimizer_state = load_state(folder)
            except CheckpointError as error:
                problem = str(error)
            else:
                _set_aside(root, [one for one in candidates[:position] if one in found])
                if candidate != name:
                    _write_pointer(root, candidate)
                discard_after(root, folder)
                return Recovered(folder, state, optimizer_state, "; ".join(problems) or None)
        problems.append(f"{candidate}: {problem}")
    raise CheckpointError(
        f"recover_checkpoint: no checkpoint in {root} is whole ({'; '.join(problems) or 'there is none'}); "
        "restore one from a copy, or start a new run in another folder"
    )


def discard_after(root: Path, latest: Path | None) -> None:
    """Remove what a killed process left: temporary folders, and checkpoints that never became the latest."""
    if not root.is_dir():
        return
    for entry in sorted(root.iterdir()):
        is_newer = entry.name.startswith("round_") and (latest is None or entry.name > latest.name)
        if entry.name.startswith(TEMPORARY_PREFIX) or is_newer:
            _remove(entry)


def load_state(folder: Path) -> tuple[TrainerState, list[dict[str, Any]]]:
    """Read what a checkpoint holds besides the weights.

    Args:
        folder: The checkpoint.

    Returns:
        State of the run, state of the optimisers.

    Raises:
        CheckpointError: If a file is damaged or of another version.
    """
    try:
        raw = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        version = raw.pop("version")
        if version != VERSION:
            raise CheckpointError(f"load_state: {folder} has version {version!r}, wanted {VERSION}")
        tensors = torch.load(folder / TENSOR_FILE, weights_only=True, map_location="cpu")
        raw["round_steps"] = {turn: tuple(sums) for turn, sums in raw["round_steps"].items()}
        raw["round_metrics"] = tuple(raw["round_metrics"])
        state = TrainerState(**raw)
    except _UNREADABLE as error:
        raise CheckpointError(f"load_state: {folder} cannot be read: {error}") from error
    return state, tensors["optimizer"]


def _sizes(folder: Path) -> dict[str, int]:
    """Sizes of all files of a checkpoint but that which lists them."""
    return {
        str(entry.relative_to(folder)): entry.stat().st_size
        for entry in sorted(folder.rglob("*"))
        if entry.is_file() and entry.name != SIZES_FILE
    }


def _problem(folder: Path) -> str | None:
    """Say what a checkpoint lacks, None where it is whole."""
    if not folder.is_dir():
        return "its folder is gone"
    try:
        wanted = json.loads((folder / SIZES_FILE).read_text(encoding="utf-8"))
        found = _sizes(folder)
        for name, size in wanted.items():
            if name not in found:
                return f"{name} is missing"
            if found[name] != size:
                return f"{name} has {found[name]} bytes, wanted {size}"
    except (OSError, ValueError, AttributeError) as error:
        return f"{SIZES_FILE} cannot be read: {error}"
    return None


def _set_aside(root: Path, names: Sequence[str]) -> None:
    for name in names:
        target = root / f"{DAMAGED_PREFIX}{name}"
        _remove(target)
        (root / name).rename(target)


def _pointed(root: Path) -> str | None:
    pointer = root / POINTER
    return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None


def _write_pointer(root: Path, name: str) -> None:
    temporary = root / f"{TEMPORARY_PREFIX}{POINTER}"
    with temporary.open("w", encoding="utf-8") as file:
        file.write(name + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(root / POINTER)
    _sync_folder(root)


def _keep(root: Path, keep_last: int, current: str) -> None:
    names = sorted(entry.name for entry in root.iterdir() if entry.name.startswith("round_"))
    for name in names[:-keep_last]:
        if name != current:
            doomed = root / f"{TEMPORARY_PREFIX}{name}"
            (root / name).rename(doomed)
            _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()


def _sync_tree(folder: Path) -> None:
    for entry in folder.rglob("*"):
        if entry.is_file():
            with entry.open("rb") as file:
                os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
