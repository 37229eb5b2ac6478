"""Household problems for ALFWorld's domain: its six task types in rooms that we furnish.

A problem is text in PDDL, to be played with the domain and the grammar of the alfworld package. It is a
pure function of split, seed and task type. The rooms of "valid_unseen" are furnished in ways that occur in
no other split.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sod.envs.alfworld_rooms import (
    BATHROOM,
    BEDROOM,
    CLEANABLE,
    COOLABLE,
    HEATABLE,
    KITCHEN,
    LAMPS,
    OPENABLE,
    Room,
    can_hold,
)
from sod.errors import DataError

TaskType = Literal[
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
]
"""ALFWorld's task types, by its names."""

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)
SPLITS: tuple[str, ...] = ("train", "valid_seen", "valid_unseen")

_FIRST_UNSEEN_LAYOUT, _NUM_LAYOUTS = 24, 30
_NUM_OBJECTS = (6, 12)
_TREATMENTS: Mapping[str, tuple[str, str, str, frozenset[str]]] = {
    "pick_clean_then_place_in_recep": ("clean", "cleanable", "isClean", CLEANABLE),
    "pick_heat_then_place_in_recep": ("hot", "heatable", "isHot", HEATABLE),
    "pick_cool_then_place_in_recep": ("cool", "coolable", "isCool", COOLABLE),
}
_TREATING: Mapping[str, tuple[str, str]] = {
    "pick_clean_then_place_in_recep": ("clean", "sinkbasin"),
    "pick_heat_then_place_in_recep": ("heat", "microwave"),
    "pick_cool_then_place_in_recep": ("cool", "fridge"),
}
# The domain names these although a room may have none.
_ALWAYS_RTYPES = ("sinkbasin", "microwave", "fridge")
_ALWAYS_OTYPES = ("knife", "butterknife")
_NAMES: Mapping[str, str] = {
    "sinkbasin": "SinkBasinType",
    "microwave": "MicrowaveType",
    "fridge": "FridgeType",
    "knife": "KnifeType",
    "butterknife": "ButterKnifeType",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem.

    Attributes:
        task_type: Its type.
        sentence: The task in words.
        pddl: The whole problem.
        plan: Actions that solve it from the beginning, as a player writes them.
    """

    task_type: TaskType
    sentence: str
    pddl: str
    plan: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _House:
    """A furnished room: receptacle names, and where each thing lies."""

    receptacles: tuple[str, ...]
    places: Mapping[str, str]


def alfworld_problem(task_type: str, seed: int, *, split: str = "train") -> Problem:
    """Make one problem: the same arguments always give the same problem.

    Args:
        task_type: One of `TASK_TYPES`.
        seed: Any integer.
        split: "train", "valid_seen" or "valid_unseen".

    Returns:
        The problem. It can be solved, and is not solved at the beginning.

    Raises:
        DataError: If the type or the split is unknown.
    """
    chosen = next((known for known in TASK_TYPES if known == task_type), None)
    if chosen is None:
        raise DataError(
            f"alfworld_problem: task_type is {task_type!r}; choose one of {', '.join(TASK_TYPES)}."
        )
    if split not in SPLITS:
        raise DataError(f"alfworld_problem: split is {split!r}; choose one of {', '.join(SPLITS)}.")
    generator = random.Random(f"alfworld:{split}:{seed}:{task_type}")  # noqa: S311 - not for secrets
    room = _room(chosen, generator)
    is_unseen = split == "valid_unseen"
    layouts = range(_FIRST_UNSEEN_LAYOUT, _NUM_LAYOUTS) if is_unseen else range(_FIRST_UNSEEN_LAYOUT)
    receptacles = _furnish(room, generator.choice(layouts))
    thing, target = _wish(chosen, room, receptacles, generator)
    house = _fill(chosen, room, receptacles, thing, target, generator)
    return Problem(
        task_type=chosen,
        sentence=_sentence(chosen, thing, target),
        pddl=_pddl(chosen, house, thing, target),
        plan=_plan(chosen, house, thing, target),
    )


def shown_names(identifiers: Sequence[str]) -> dict[str, str]:
    """Give the things of a game the names that ALFWorld shows: "drawer 2" for `drawer_bar_...`.

    Args:
        identifiers: Of a game's PDDL.

    Returns:
        Identifier to name. Things of a kind are numbered down in the order of their identifiers, as
        ALFWorld does; an identifier without `_bar_` is its own name.
    """
    kinds: dict[str, str] = {}
    for one in sorted(identifiers):
        kind, separator, _ = one.partition("_bar_")
        if separator:
            is_basin = "basin" in one and not kind.endswith("basin")
            kinds[one] = f"{kind}basin" if is_basin else kind
    left = Counter(kinds.values())
    names = {one: one for one in identifiers}
    for one, kind in kinds.items():
        names[one] = f"{kind} {left[kind]}"
        left[kind] -= 1
    return names


def _room(task_type: TaskType, generator: random.Random) -> Room:
    if task_type == "look_at_obj_in_light":
        return BEDROOM
    if task_type in ("pick_heat_then_place_in_recep", "pick_cool_then_place_in_recep"):
        return KITCHEN
    if task_type == "pick_clean_then_place_in_recep":
        return generator.choice((KITCHEN, BATHROOM))
    return generator.choice((KITCHEN, BEDROOM, BATHROOM))


def _furnish(room: Room, layout: int) -> tuple[str, ...]:
    """The receptacles of a layout, numbered: "drawer_1", "drawer_2", ..."""
    generator = random.Random(f"layout:{layout}:{sorted(room.receptacles)}")  # noqa: S311 - not for secrets
    counts = {kind: generator.randint(*limits) for kind, limits in room.receptacles.items()}
    return tuple(f"{kind}_{number}" for kind in counts for number in range(1, counts[kind] + 1))


def _wish(
    task_type: TaskType, room: Room, receptacles: tuple[str, ...], generator: random.Random
) -> tuple[str, str]:
    """Kind of thing and kind of receptacle that the task is about; with a lamp, the kind of lamp."""
    if task_type == "look_at_obj_in_light":
        return generator.choice(room.objects), LAMPS[0]
    things = [one for one in room.objects if task_type not in _TREATMENTS or one in _TREATMENTS[task_type][3]]
    thing = generator.choice(things)
    # A treated thing could lie untreated in the place where it is treated, which would be odd as a wish.
    kinds = sorted({_kind(one) for one in receptacles} - {"sinkbasin", "stoveburner", "handtowelholder"})
    return thing, generator.choice([kind for kind in kinds if can_hold(kind, thing)])


def _fill(
    task_type: TaskType,
    room: Room,
    receptacles: tuple[str, ...],
    thing: str,
    target: str,
    generator: random.Random,
) -> _House:
    """Puts things in place: those of the task outside the target, others anywhere."""
    num_wanted = 2 if task_type == "pick_two_obj_and_place" else 1
    others = generator.choices(room.objects, k=generator.randint(*_NUM_OBJECTS))
    kinds = [thing] * num_wanted + [other for other in others if other != thing]
    places: dict[str, str] = {}
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
        allowed = [
            one
            for one in receptacles
            if can_hold(_kind(one), kind) and (kind != thing or _kind(one) != target)
        ]
        places[f"{kind}_{counts[kind]}"] = generator.choice(allowed)
    if task_type == "look_at_obj_in_light":
        stands = [one for one in receptacles if _kind(one) in room.lamp_stands]
        places[f"{target}_1"] = generator.choice(stands)
    return _House(receptacles=receptacles, places=places)


def _plan(task_type: TaskType, house: _House, thing: str, target: str) -> tuple[str, ...]:
    """A direct way: fetch, treat, bring; or fetch and go to the lamp."""
    everything = [_id(one) for one in (*house.receptacles, *house.places)]
    shown = shown_names(everything)
    names = {one: shown[_id(one)] for one in (*house.receptacles, *house.places)}
    steps: list[str] = []
    opened: set[str] = set()
    here = ""

    def visit(receptacle: str, *, is_opened: bool = True) -> None:
        nonlocal here
        if receptacle != here:
            steps.append(f"go to {names[receptacle]}")
            here = receptacle
        if is_opened and _kind(receptacle) in OPENABLE and receptacle not in opened:
            steps.append(f"open {names[receptacle]}")
            opened.add(receptacle)

    goals = [one for one in house.receptacles if _kind(one) == target]
    for one in [one for one in house.places if _kind(one) == thing]:
        visit(house.places[one])
        steps.append(f"take {names[one]} from {names[here]}")
        if task_type == "look_at_obj_in_light":
            visit(house.places[f"{target}_1"], is_opened=False)
            return (*steps, f"use {names[f'{target}_1']}")
        if task_type in _TREATMENTS:
            verb, kind = _TREATING[task_type]
            visit(next(place for place in house.receptacles if _kind(place) == kind), is_opened=False)
            steps.append(f"{verb} {names[one]} with {names[here]}")
        visit(goals[0])
        steps.append(f"move {names[one]} to {names[here]}")
    return tuple(steps)


def _sentence(task_type: TaskType, thing: str, target: str) -> str:
    if task_type == "look_at_obj_in_light":
        return f"look at {thing} under the {target}"
    if task_type == "pick_two_obj_and_place":
        return f"put two {thing} in {target}"
    if task_type in _TREATMENTS:
        return f"put a {_TREATMENTS[task_type][0]} {thing} in {target}"
    return f"put a {thing} in {target}"


def _goal(task_type: TaskType, thing: str, target: str) -> str:
    if task_type == "look_at_obj_in_light":
        return (
            f"(and (exists (?lamp - object ?r - receptacle ?a - agent ?l - location) (and (objectType ?lamp "
            f"{_type(target)}) (toggleable ?lamp) (isToggled ?lamp) (inReceptacle ?lamp ?r) "
            f"(receptacleAtLocation ?r ?l) (atLocation ?a ?l))) (exists (?o - object ?a - agent) (and "
            f"(objectType ?o {_type(thing)}) (holds ?a ?o))))"
        )
    if task_type == "pick_two_obj_and_place":
        return (
            f"(exists (?r - receptacle) (and (receptacleType ?r {_type(target)}) (exists (?o1 - object ?o2 - "
            f"object) (and (not (= ?o1 ?o2)) (objectType ?o1 {_type(thing)}) (objectType ?o2 {_type(thing)}) "
            "(inReceptacle ?o1 ?r) (inReceptacle ?o2 ?r)))))"
        )
    treated = f"({_TREATMENTS[task_type][2]} ?o) " if task_type in _TREATMENTS else ""
    return (
        f"(exists (?r - receptacle ?o - object) (and {treated}(objectType ?o {_type(thing)}) "
        f"(receptacleType ?r {_type(target)}) (inReceptacle ?o ?r)))"
    )


def _pddl(task_type: TaskType, house: _House, thing: str, target: str) -> str:
    receptacles = {one: _location(number) for number, one in enumerate(house.receptacles, start=1)}
    rtypes = sorted({_kind(one) for one in receptacles} | set(_ALWAYS_RTYPES))
    otypes = sorted({_kind(one) for one in house.places} | set(_ALWAYS_OTYPES))
    objects = [
        "agent1 - agent",
        *(f"{_location(number)} - location" for number in range(len(receptacles) + 1)),
        *(f"{_id(one)} - receptacle" for one in receptacles),
        *(f"{_id(one)} - object" for one in house.places),
        *(f"{_type(kind)} - rtype" for kind in rtypes),
        *(f"{_type(kind)} - otype" for kind in otypes),
    ]
    facts = ["(= (total-cost) 0)", f"(atLocation agent1 {_location(0)})"]
    facts += [f"(canContain {_type(r)} {_type(o)})" for r in rtypes for o in otypes if can_hold(r, o)]
    for one, location in receptacles.items():
        facts += [f"(receptacleType {_id(one)} {_type(_kind(one))})"]
        facts += [f"(receptacleAtLocation {_id(one)} {location})"]
        facts += [f"(openable {_id(one)})"] if _kind(one) in OPENABLE else []
    for one, place in house.places.items():
        facts += _thing_facts(one, place, receptacles[place])
    lines = ["(define (problem household)", "(:domain alfred)", "(:objects", *objects, ")", "(:init", *facts]
    return "\n".join(
        [*lines, ")", f"(:goal {_goal(task_type, thing, target)})", "(:metric minimize (total-cost))", ")"]
    )


def _thing_facts(thing: str, place: str, location: str) -> list[str]:
    kind = _kind(thing)
    facts = [f"(objectType {_id(thing)} {_type(kind)})"]
    facts += [f"(inReceptacle {_id(thing)} {_id(place)})", f"(objectAtLocation {_id(thing)} {location})"]
    if kind in LAMPS:
        return [*facts, f"(toggleable {_id(thing)})"]
    facts += [f"(pickupable {_id(thing)})"]
    for _, able, _, kinds in _TREATMENTS.values():
        facts += [f"({able} {_id(thing)})"] if kind in kinds else []
    return facts


def _kind(name: str) -> str:
    return name.rpartition("_")[0]


def _id(name: str) -> str:
    """The identifier of a thing: ALFWorld writes the bar of its own names as `_bar_`."""
    kind, _, number = name.rpartition("_")
    return f"{kind}_bar_{number}"


def _type(kind: str) -> str:
    return _NAMES.get(kind, f"{kind.capitalize()}Type")


def _location(number: int) -> str:
    return f"loc_bar_{number}"
