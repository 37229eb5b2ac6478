"""What ALFWorld's rooms are furnished with, and what can be done with the things in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OPENABLE = frozenset(["cabinet", "drawer", "fridge", "microwave", "safe"])
"""Receptacles that must be opened; closed at the beginning."""

CLEANABLE = frozenset(
    [
        *("apple", "bowl", "butterknife", "cloth", "cup", "egg", "fork", "knife", "lettuce", "mug", "pan"),
        *("plate", "pot", "potato", "soapbar", "spatula", "spoon", "tomato"),
    ]
)
HEATABLE = frozenset(["apple", "bread", "cup", "egg", "mug", "plate", "potato", "tomato"])
COOLABLE = frozenset(
    ["apple", "bowl", "bread", "cup", "egg", "lettuce", "mug", "pan", "plate", "pot", "potato", "tomato"]
)

LAMPS = ("desklamp", "floorlamp")
"""Objects that stay where they are and can be switched on."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """One kind of room.

    Attributes:
        receptacles: Fewest and most of each kind.
        objects: Kinds of things that may lie around.
        lamp_stands: Receptacles that a lamp may stand on.
    """

    receptacles: Mapping[str, tuple[int, int]]
    objects: tuple[str, ...]
    lamp_stands: tuple[str, ...] = ()


KITCHEN = Room(
    receptacles={
        "cabinet": (2, 5),
        "countertop": (1, 3),
        "diningtable": (0, 1),
        "drawer": (2, 4),
        "fridge": (1, 1),
        "garbagecan": (1, 1),
        "microwave": (1, 1),
        "shelf": (0, 2),
        "sinkbasin": (1, 1),
        "stoveburner": (1, 2),
    },
    objects=(
        *("apple", "bowl", "bread", "butterknife", "cup", "egg", "fork", "knife", "lettuce", "mug", "pan"),
        *("plate", "pot", "potato", "spatula", "spoon", "tomato"),
    ),
)
BEDROOM = Room(
    receptacles={
        "bed": (1, 1),
        "desk": (1, 2),
        "drawer": (2, 4),
        "dresser": (1, 1),
        "garbagecan": (1, 1),
        "safe": (0, 1),
        "shelf": (1, 4),
        "sidetable": (1, 2),
    },
    objects=("book", "cd", "cellphone", "creditcard", "keychain", "laptop", "mug", "pen", "pencil", "pillow"),
    lamp_stands=("desk", "sidetable", "dresser"),
)
BATHROOM = Room(
    receptacles={
        "bathtubbasin": (1, 1),
        "cabinet": (2, 4),
        "countertop": (1, 1),
        "garbagecan": (1, 1),
        "handtowelholder": (1, 2),
        "shelf": (0, 2),
        "sinkbasin": (1, 2),
        "toilet": (1, 1),
    },
    objects=(
        "candle",
        "cloth",
        "handtowel",
        "soapbar",
        "soapbottle",
        "spraybottle",
        "tissuebox",
        "toiletpaper",
    ),
)


def can_hold(receptacle: str, thing: str) -> bool:
    """Tell whether a kind of receptacle can hold a kind of thing.

    Args:
        receptacle: Kind of receptacle.
        thing: Kind of object.

    Returns:
        Whether the thing may lie there, at the beginning or later.
    """
    if receptacle == "handtowelholder":
        return thing == "handtowel"
    if receptacle == "stoveburner":
        return thing in ("pan", "pot")
    if receptacle == "microwave":
        return thing in HEATABLE
    if receptacle == "fridge":
        return thing in COOLABLE
    if receptacle == "sinkbasin":
        return thing in CLEANABLE
    return receptacle != "garbagecan" or thing not in ("laptop", "pillow")
