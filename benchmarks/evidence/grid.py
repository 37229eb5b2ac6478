"""What is run: the tables of grid.toml, checked."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from sod.config_file import nearest, section_from_dict
from sod.config_schema import Above, AtLeast, AtMost, Section
from sod.errors import ConfigError

GRID_FILE = Path(__file__).with_name("grid.toml")
TEACHERS: Mapping[str, bool] = {"naive": False, "trained": True}
"""Kind of teacher, and whether its traces have faults and what to do after them."""


@dataclass(frozen=True, kw_only=True)
class World(Section):
    """The questions, their tools and how many of each there are; see grid.toml."""

    num_lookups: tuple[int, ...]
    fault_rate: Annotated[float, Above(0), AtMost(0.9)]
    max_errors_in_a_row: Annotated[int, Above(0)]
    num_held_out: Annotated[int, AtLeast(2)]
    num_check: Annotated[int, AtLeast(2)]
    num_start: Annotated[int, Above(0)]
    num_states: Annotated[int, Above(0)]


@dataclass(frozen=True, kw_only=True)
class Supervised(Section):
    """A model that learns from the expert's traces.

    With a `target` it stops at that share of training questions solved with honest tools, looked at every
    `check_every` updates from `check_from` on: so small a model learns to know the codes all of a sudden,
    and a fixed number of updates would give every seed another start.
    """

    layers: Annotated[int, Above(0)]
    width: Annotated[int, Above(0)]
    heads: Annotated[int, Above(0)]
    traces: Annotated[int, Above(0)]
    updates: Annotated[int, Above(0)]
    minibatch: Annotated[int, Above(0)]
    target: Annotated[float, Above(0), AtMost(1)] | None = None
    check_from: Annotated[int, Above(0)] = 100
    check_every: Annotated[int, Above(0)] = 20


@dataclass(frozen=True, kw_only=True)
class Size(Section):
    """How much work a cell is."""

    vocab_size: Annotated[int, Above(0)]
    teacher: Supervised
    student: Supervised
    rounds: Annotated[int, Above(0)]
    tasks_per_round: Annotated[int, Above(0)]
    num_samples: Annotated[int, AtLeast(2)]
    minibatch: Annotated[int, Above(0)]
    epochs: Annotated[int, Above(0)]
    warmup_updates: Annotated[int, AtLeast(0)]
    eval_every: Annotated[int, Above(0)]


@dataclass(frozen=True, kw_only=True)
class Regime(Section):
    """Who teaches, and whether the tools fail while the student learns."""

    teacher: str
    has_faults: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher not in TEACHERS:
            raise ConfigError(f"{self.section}: teacher = {self.teacher!r}{nearest(self.teacher, TEACHERS)}")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is compared: a name for the tables, and an [algorithm] section."""

    title: str
    algorithm: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Part(Section):
    """A named part of the grid."""

    size: str
    regimes: tuple[str, ...]
    updates: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training run: a method from a seed's cold start."""

    seed: int
    regime: str
    update: str
    method: str

    @property
    def name(self) -> str:
        """Its folder below the grid's output."""
        return f"seed_{self.seed}/cells/{self.regime}.{self.update}.{self.method}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Everything of a grid file that one size of it needs."""

    world: World
    size: Size
    rollout: Mapping[str, Any]
    updates: Mapping[str, Mapping[str, Any]]
    regimes: Mapping[str, Regime]
    methods: Mapping[str, Method]
    parts: Mapping[str, Part]

    def cells(self, names: tuple[str, ...], seeds: tuple[int, ...] = ()) -> list[Cell]:
        """List the cells of named parts, each once, in the order in which they are wanted.

        Args:
            names: Parts.
            seeds: Seeds in place of the parts' own; empty for those.
        """
        found = (cell for name in names for cell in self._cells(self.parts[name], seeds))
        return list(dict.fromkeys(found))

    def _cells(self, part: Part, seeds: tuple[int, ...]) -> Iterator[Cell]:
        for seed in seeds or part.seeds:
            for update in part.updates:
                for regime in part.regimes:
                    for method in part.methods:
                        yield Cell(seed=seed, regime=regime, update=update, method=method)


def load_grid(names: tuple[str, ...], path: Path = GRID_FILE) -> Grid:
    """Read a grid file for parts of it that have one size.

    Args:
        names: Parts, keys of [grids].
        path: The file.

    Returns:
        The grid; what a size overrides of [world] and [rollout] is put in.

    Raises:
        ConfigError: For an unknown part, key or name, or parts of different sizes.
    """
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    parts = {name: section_of(Part, values, f"grids.{name}") for name, values in raw["grids"].items()}
    sizes = {_known(name, parts, "grids").size for name in names}
    if len(sizes) != 1:
        raise ConfigError(
            f"evidence: the grids {', '.join(names) or 'none'} have sizes {sorted(sizes)}; name grids of one"
        )
    values = dict(_known(sizes.pop(), raw["sizes"], "sizes"))
    world = section_of(World, raw["world"], "world")
    rollout = {**raw["rollout"], **values.pop("rollout", {})}
    own = {key: values.pop(key) for key in list(values) if key in raw["world"]}
    for role in ("teacher", "student"):
        values[role] = section_of(Supervised, values[role], f"sizes {role}")
    grid = Grid(
        world=replace(world, **own),
        size=section_of(Size, values, "sizes"),
        rollout=rollout,
        updates=raw["updates"],
        regimes={name: section_of(Regime, one, f"regimes.{name}") for name, one in raw["regimes"].items()},
        methods={name: Method(**one) for name, one in raw["methods"].items()},
        parts=parts,
    )
    for name in names:
        for kind, known in (("regimes", grid.regimes), ("updates", grid.updates), ("methods", grid.methods)):
            for one in getattr(parts[name], kind):
                _known(one, known, kind)
    return grid


def _known(name: str, known: Mapping[str, Any], kind: str) -> Any:
    if name not in known:
        raise ConfigError(f"evidence: [{kind}] has no {name!r}{nearest(name, known)}")
    return known[name]


def section_of(kind: type[Any], raw: Mapping[str, Any], name: str) -> Any:
    """Read a table as a section of settings that errors call by a name."""
    named = type(kind.__name__, (kind,), {"section": name, "__doc__": kind.__doc__})
    return section_from_dict(named, raw, base=Path())
