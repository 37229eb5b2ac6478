"""A small web store, made up: for tests, experiments and machines without the files of WebShop."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from sod.envs.store_catalog import Catalogue, Goal, Product, price_goal
from sod.errors import DataError

_BRANDS = ("Alder", "Brisk", "Calder", "Dunmore", "Elska", "Fennick", "Garrow", "Hollis", "Ivry", "Juno")
_COLOURS = ("black", "white", "red", "blue", "green", "grey", "yellow", "brown")


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What there is of one kind of product."""

    noun: str
    category: str
    attributes: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    prices: tuple[int, int]


_CLOTHES = {"color": _COLOURS, "size": ("small", "medium", "large", "x-large")}
_KINDS = (
    _Kind(
        noun="coffee mug",
        category="Home & Kitchen › Kitchen & Dining › Mugs",
        attributes=("dishwasher safe", "microwave safe", "double walled", "hand painted", "lead free"),
        options={"color": _COLOURS, "capacity": ("8 ounce", "12 ounce", "16 ounce")},
        prices=(6, 30),
    ),
    _Kind(
        noun="desk lamp",
        category="Home & Kitchen › Lighting › Lamps",
        attributes=("dimmable", "energy saving", "adjustable arm", "touch control", "cordless"),
        options={"color": _COLOURS},
        prices=(15, 90),
    ),
    _Kind(
        noun="hiking jacket",
        category="Clothing › Men › Jackets",
        attributes=("water resistant", "machine washable", "quick drying", "hooded", "wind proof"),
        options=_CLOTHES,
        prices=(35, 220),
    ),
    _Kind(
        noun="running shirt",
        category="Clothing › Women › Shirts",
        attributes=("moisture wicking", "machine washable", "long sleeve", "slim fit", "recycled polyester"),
        options=_CLOTHES,
        prices=(9, 55),
    ),
    _Kind(
        noun="face cream",
        category="Beauty › Skin Care › Creams",
        attributes=("fragrance free", "cruelty free", "oil free", "for sensitive skin", "long lasting"),
        options={"size": ("1 ounce", "2 ounce", "4 ounce"), "scent": ("none", "lavender", "rose")},
        prices=(7, 60),
    ),
    _Kind(
        noun="snack bar",
        category="Grocery › Snacks › Bars",
        attributes=("gluten free", "high protein", "low sugar", "non gmo", "plant based"),
        options={
            "flavor name": ("peanut", "chocolate", "coconut", "apple cinnamon"),
            "size": ("6 count", "12 count", "24 count"),
        },
        prices=(5, 45),
    ),
    _Kind(
        noun="phone case",
        category="Electronics › Accessories › Cases",
        attributes=("shock absorbing", "wireless charging", "scratch resistant", "slim fit", "clear back"),
        options={"color": _COLOURS, "style": ("phone 12", "phone 13", "phone 14")},
        prices=(6, 40),
    ),
    _Kind(
        noun="travel pillow",
        category="Home & Kitchen › Bedding › Pillows",
        attributes=("memory foam", "machine washable", "inflatable", "hypoallergenic", "travel size"),
        options={"color": _COLOURS, "size": ("small", "large")},
        prices=(8, 60),
    ),
)
_ATTRIBUTES_PER_PRODUCT = 3
_GOALS_PER_PRODUCT = 2


def make_store(num_products: int, *, seed: int) -> Catalogue:
    """Make a store: the same arguments always give the same one.

    Args:
        num_products: At least 1.
        seed: Any integer.

    Returns:
        The catalogue, with two goals per product.

    Raises:
        DataError: If there are no products to make.
    """
    if num_products < 1:
        raise DataError(f"make_store: num_products is {num_products}; ask for at least 1.")
    products = [_product(seed, index) for index in range(num_products)]
    goals = [_goal(product, seed, number) for product in products for number in range(_GOALS_PER_PRODUCT)]
    return Catalogue(products={one.product_id: one for one in products}, goals=tuple(goals))


def _product(seed: int, index: int) -> Product:
    generator = random.Random(f"store:{seed}:{index}")  # noqa: S311 - not for secrets
    kind = generator.choice(_KINDS)
    attributes = tuple(generator.sample(kind.attributes, _ATTRIBUTES_PER_PRODUCT))
    # Every product lacks one value of each option, so that a right product may not have what is wanted.
    missing = {name: generator.choice(values) for name, values in kind.options.items()}
    options = {
        name: tuple(value for value in values if value != missing[name])
        for name, values in kind.options.items()
    }
    price = generator.randint(*kind.prices) - 0.01
    shown, *hidden = attributes
    return Product(
        product_id=f"P{index:05d}",
        title=f"{generator.choice(_BRANDS)} {kind.noun.title()}, {shown.title()}, Model {index:05d}",
        description=f"A {kind.noun} for every day. It is {hidden[0]}.",
        features=(f"Made to be {hidden[1]}", f"From the collection of {2000 + generator.randrange(26)}"),
        attributes=attributes,
        options=options,
        price=price,
        price_text=f"${price:.2f}",
        query=kind.noun,
        category=kind.category,
    )


def _goal(product: Product, seed: int, number: int) -> Goal:
    name = f"{seed}:{product.product_id}:{number}"
    generator = random.Random(f"goal:{name}")  # noqa: S311 - not for secrets
    attributes = tuple(generator.sample(product.attributes, generator.randint(1, 2)))
    chosen = {option: generator.choice(values) for option, values in product.options.items()}
    wish = f"i want a {product.query} that is {' and '.join(attributes)}"
    if chosen:
        wish += " with " + ", and ".join(f"{option}: {value}" for option, value in chosen.items())
    instruction, limit = price_goal(wish, product.price, name)
    return Goal(
        product_id=product.product_id,
        instruction=instruction,
        attributes=attributes,
        options=tuple(chosen.values()),
        price_limit=limit,
    )
