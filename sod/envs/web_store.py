"""A web store as in WebShop: search, look at products, choose options, buy."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from sod.config_schema import Above, AtLeast
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry, TaskRequest
from sod.envs.store_catalog import Catalogue, Goal, read_webshop
from sod.envs.store_generator import make_store
from sod.envs.store_pages import Store, StoreGame
from sod.envs.text_game import TextEnvironment, TextSection, text_instruction
from sod.envs.text_index import TextIndex, index_file
from sod.errors import ConfigError, DataError
from sod.types import Task

SPLITS: tuple[str, ...] = ("train", "valid", "test")
"""Disjoint sets of goals: 500 for "test" and 1,000 for "valid", or a fifth each where there are few."""

_SHUFFLE_SEED = 233
_INSTRUCTION = text_instruction(
    "You are shopping in a web store. Find and buy a product that fits the wish below; buying ends the "
    "visit. An action is search[words] on the search page, or click[what] for anything that can be clicked."
)


@dataclass(frozen=True, kw_only=True)
class WebStoreSection(TextSection):
    """A web store: that of WebShop where its files are given, else a small one that is made up."""

    name: str = "web_store"
    """Name of the environment."""
    cache: Path
    """Folder that the search index is built in, once."""
    products: Path | None = None
    """WebShop's `items_shuffle.json`; None for a made-up store."""
    attributes: Path | None = None
    """WebShop's `items_ins_v2.json`."""
    instructions: Path | None = None
    """WebShop's `items_human_ins.json`."""
    max_products: Annotated[int, Above(0)] | None = None
    """Products read from the start of the file; None for all."""
    num_made_up: Annotated[int, Above(0)] = 200
    """Products of a made-up store."""
    store_seed: Annotated[int, AtLeast(0)] = 0
    """Seed of a made-up store."""

    def __post_init__(self) -> None:
        """Check types and ranges, and that every setting is read at all."""
        super().__post_init__()
        paths = {key: getattr(self, key) for key in ("products", "attributes", "instructions")}
        missing = [key for key, path in paths.items() if path is None]
        if 0 < len(missing) < len(paths):
            raise ConfigError(
                f"[environment] {missing[0]} is missing; give all of {', '.join(paths)}, or none for a "
                "made-up store"
            )
        unread = ("max_products",) if missing else ("num_made_up", "store_seed")
        for item in fields(self):
            if item.name in unread and getattr(self, item.name) != item.default:
                kind = "a made-up store" if missing else "a store from files"
                raise ConfigError(
                    f"[environment] {item.name} = {getattr(self, item.name)!r}: is not read for {kind}; "
                    "remove it"
                )


def load_catalogue(section: WebStoreSection) -> Catalogue:
    """Read or make the catalogue of a section.

    Args:
        section: Settings.

    Returns:
        Products and goals.

    Raises:
        DataError: A file is missing or of another form.
    """
    if section.products is None or section.attributes is None or section.instructions is None:
        return make_store(section.num_made_up, seed=section.store_seed)
    return read_webshop(
        section.products, section.attributes, section.instructions, limit=section.max_products
    )


def open_store(section: WebStoreSection) -> Store:
    """Load the catalogue of a section and open its index, which is built where it is not there yet.

    Args:
        section: Settings.

    Returns:
        The store; the caller closes its index.

    Raises:
        DataError: A file is missing or of another form.
    """
    catalogue = load_catalogue(section)
    texts = [
        (one.title, " ".join([*one.features, one.description, one.query]))
        for one in catalogue.products.values()
    ]
    digest = hashlib.blake2b(digest_size=16)
    for title, text in texts:
        digest.update(f"{title}\n{text}\n".encode())
    path = index_file(texts, digest.hexdigest(), cache=section.cache)
    return Store(catalogue=catalogue, index=TextIndex(path), ids=tuple(catalogue.products))


def store_tasks(catalogue: Catalogue, request: TaskRequest) -> list[Task]:
    """Make tasks of a catalogue's goals.

    Args:
        catalogue: See `open_store`.
        request: Which; the splits are "train", "valid" and "test". A goal is in one of them, whatever the
            seed, which decides the order within the split.

    Returns:
        Tasks whose fields hold the `goal`; the message holds its words.

    Raises:
        DataError: If an argument is out of range, or there are not so many goals.
    """
    num_tasks, seed, split, first = request.num_tasks, request.seed, request.split, request.first
    if split not in SPLITS:
        raise DataError(f"store_tasks: split is {split!r}; choose one of {', '.join(SPLITS)}.")
    if num_tasks < 1 or first < 0:
        raise DataError(f"store_tasks: num_tasks is {num_tasks} and first {first}; wanted 1 and 0 or more.")
    goals = _goals_of(catalogue, split)
    random.Random(f"order:{seed}").shuffle(goals)  # noqa: S311 - not for secrets
    chosen = goals[first : first + num_tasks]
    if len(chosen) < num_tasks:
        raise DataError(
            f"store_tasks: {num_tasks} goals from {first} on asked for, but split {split!r} has "
            f"{len(goals)}; ask for fewer, or take a larger store."
        )
    return [
        Task(
            task_id=f"store-{split}-{seed}-{index}",
            messages=({"role": "user", "content": f"{_INSTRUCTION}\n\nWish: {goal.instruction}"},),
            fields={"goal": asdict(goal)},
        )
        for index, goal in enumerate(chosen, start=first)
    ]


def build(section: WebStoreSection) -> BuiltEnvironment:
    """Build the environment; its index is built where it is not there yet.

    Args:
        section: Settings.

    Returns:
        The environment, for tasks of `store_tasks`.

    Raises:
        ConfigError: rapidfuzz is not installed.
        DataError: A file is missing or of another form.
    """
    if find_spec("rapidfuzz") is None:
        raise ConfigError(
            '[environment] name = "web_store": the package rapidfuzz is not installed; '
            "run: pip install 'sod-kernels[envs]'"
        )
    store = open_store(section)

    def factory(task: Task) -> TextEnvironment:
        return TextEnvironment(task, StoreGame(store, _goal(task, store)), section)

    return BuiltEnvironment(factory=factory, close=store.index.close)


def _goal(task: Task, store: Store) -> Goal:
    values: Any = task.fields.get("goal")
    wanted = {item.name for item in fields(Goal)}
    if not isinstance(values, Mapping) or set(values) != wanted:
        raise DataError(
            f"web_store: task {task.task_id!r} has no goal with {sorted(wanted)}; use `sod tasks`."
        )
    if values["product_id"] not in store.catalogue.products:
        raise DataError(
            f"web_store: the goal of task {task.task_id!r} is product {values['product_id']!r}, which this "
            "store does not have; make the tasks with the same settings."
        )
    changed = {key: tuple(values[key]) for key in ("attributes", "options")}
    return Goal(**{**values, **changed})


def _goals_of(catalogue: Catalogue, split: str) -> list[Goal]:
    goals = list(catalogue.goals)
    random.Random(_SHUFFLE_SEED).shuffle(goals)  # noqa: S311 - not for secrets
    num_test, num_valid = min(500, len(goals) // 5), min(1000, len(goals) // 5)
    parts = {"test": (0, num_test), "valid": (num_test, num_test + num_valid)}
    begin, end = parts.get(split, (num_test + num_valid, len(goals)))
    return goals[begin:end]


def _make_tasks(section: WebStoreSection, request: TaskRequest) -> list[Task]:
    return store_tasks(load_catalogue(section), request)


ENTRY = EnvironmentEntry(options=WebStoreSection, build=build, make_tasks=_make_tasks)
