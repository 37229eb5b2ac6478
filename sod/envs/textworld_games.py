"""TextWorld game files, made on this machine and kept in a folder.

A game is a pure function of its settings and its seed. Making one compiles it with Inform 7, which comes
with the textworld package, and takes 5 to 10 seconds; playing it takes milliseconds per turn.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import threading
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from sod.errors import ConfigError, DataError

GameKind = Literal["cooking", "treasure"]

SPLITS: tuple[str, ...] = ("train", "valid", "test")
"""Disjoint sets of games. Those of cooking differ in foods and preparations too."""

LIBRARY_LOCK = threading.RLock()
"""Held while a game of the library moves: its parsers, and the standard output that its planner puts aside
for a moment, are those of the whole process, and games are played in several threads."""

_CHALLENGES: Mapping[str, str] = {"cooking": "tw-cooking", "treasure": "tw-treasure_hunter"}
_NUM_SEEDS = 2**30


def game_seed(seed: int, index: int, *, split: str) -> int:
    """Give the seed of one game; no two splits ever share one.

    Args:
        seed: Seed of the set of games, any integer.
        index: Number of the game within the set, from 0.
        split: "train", "valid" or "test".

    Returns:
        A seed below 2**32.

    Raises:
        DataError: If the split is unknown or the index negative.
    """
    if split not in SPLITS:
        raise DataError(f"game_seed: split is {split!r}; choose one of {', '.join(SPLITS)}.")
    if index < 0:
        raise DataError(f"game_seed: index is {index}; it counts from 0.")
    digest = hashlib.blake2b(f"textworld:{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % _NUM_SEEDS * len(SPLITS) + SPLITS.index(split)


def game_file(kind: GameKind, settings: Mapping[str, Any], seed: int, *, cache: Path) -> Path:
    """Give the file of a game, made where it is not there yet.

    Several processes may ask for the same game at the same time.

    Args:
        kind: "cooking" or "treasure".
        settings: Of the challenge, as `tw-make` names them.
        seed: See `game_seed`.
        cache: Folder of the games, made where absent.

    Returns:
        The .z8 file; a .json file with what is known of the game lies beside it.

    Raises:
        ConfigError: If textworld is not installed.
        DataError: If no such game can be made.
    """
    spec = json.dumps([kind, dict(settings), seed, _textworld_version()], sort_keys=True)
    name = f"{kind}-{hashlib.blake2b(spec.encode(), digest_size=10).hexdigest()}"
    path = cache / f"{name}.z8"
    if path.is_file():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as folder:
        made = _make(kind, settings, seed, Path(folder) / path.name)
        # The game file comes last: where it lies, its description lies beside it.
        for suffix in (".json", ".z8"):
            made.with_suffix(suffix).replace(path.with_suffix(suffix))
    return path


def require_textworld() -> None:
    """Prove that textworld is installed.

    Raises:
        ConfigError: If it is not; the text says what to do.
    """
    _textworld_version()


def _textworld_version() -> str:
    try:
        return version("textworld")
    except ModuleNotFoundError as error:
        raise ConfigError(
            '[environment] name = "textworld": the package textworld is not installed; '
            "run: pip install 'sod-kernels[envs]'"
        ) from error


def _make(kind: GameKind, settings: Mapping[str, Any], seed: int, path: Path) -> Path:
    # Slow to import, and only needed where a game is made.
    import textworld
    from textworld.challenges import CHALLENGES
    from textworld.generator import QuestGenerationError, compile_game

    options = textworld.GameOptions()
    options.seeds = seed
    options.path = str(path)
    _, make, _ = CHALLENGES[_CHALLENGES[kind]]
    try:
        game = make(dict(settings), options)
    except QuestGenerationError as error:
        raise DataError(f"game_file: no {kind} game can be made from seed {seed}: {error}") from error
    return Path(compile_game(game, options))
