"""Products of a web store and what customers want of them.

The catalogue comes from the files of WebShop, in the form that they are published in, or from a small
generator.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sod.errors import DataError

NO_LIMIT = 1_000_000.0
"""Price limit of a goal without one, in dollars."""

_DEFAULT_PRICE = 100.0
_LONGEST_ID = 10
_LIMITS = tuple(10.0 * step for step in range(1, 100))
_MONEY = re.compile(r"\d[\d,]*\.?\d*")


@dataclass(frozen=True, kw_only=True)
class Product:
    """One product.

    Attributes:
        product_id: Unique; what is clicked in a list.
        title: Its name.
        description: Running text.
        features: Short points.
        attributes: What it is known to be ("dishwasher safe"); never shown.
        options: Kinds to choose from, by the name of the option; lower case.
        price: Dollars.
        price_text: The price as the page shows it.
        query: The search that it was found with when the catalogue was made.
        category: Path of categories, joined by " › ".
    """

    product_id: str
    title: str
    description: str
    features: tuple[str, ...]
    attributes: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    price: float
    price_text: str
    query: str
    category: str

    @property
    def text(self) -> str:
        """Everything that its pages say, in lower case."""
        return " ".join([self.title, *self.features, self.description]).lower()


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What a customer wants.

    Attributes:
        product_id: A product that has it all.
        instruction: The wish in words.
        attributes: Wanted attributes, at least one.
        options: Wanted values of options.
        price_limit: Dollars; `NO_LIMIT` for none.
    """

    product_id: str
    instruction: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]
    price_limit: float


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """All products, and all goals that they can fulfil.

    Attributes:
        products: By id, in the order of the file.
        goals: In a fixed order.
    """

    products: Mapping[str, Product]
    goals: tuple[Goal, ...]


def read_webshop(products: Path, attributes: Path, instructions: Path, *, limit: int | None) -> Catalogue:
    """Read the files of WebShop.

    Args:
        products: `items_shuffle.json` or its shorter form: a list of items.
        attributes: `items_ins_v2.json` or its shorter form: attributes by item.
        instructions: `items_human_ins.json`: what people asked for, by item.
        limit: Items read from the start; None reads all.

    Returns:
        The catalogue; a price that the file gives as a range is drawn from it, always the same.

    Raises:
        DataError: A file is missing or of another form.
    """
    items = _json(products, list)[:limit]
    known, asked = _json(attributes, dict), _json(instructions, dict)
    table: dict[str, Product] = {}
    for number, item in enumerate(items, start=1):
        try:
            product = _webshop_product(item, known)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DataError(
                f"read_webshop: item {number} of {products} is not of WebShop's form "
                f"({type(error).__name__}: {error})."
            ) from error
        # WebShop leaves out the same ones: placeholders and repetitions.
        if product.product_id != "nan" and len(product.product_id) <= _LONGEST_ID:
            table.setdefault(product.product_id, product)
    goals = [goal for one in table.values() for goal in _webshop_goals(one, asked.get(one.product_id, ()))]
    return Catalogue(products=table, goals=tuple(goals))


def price_goal(instruction: str, price: float, name: str) -> tuple[str, float]:
    """Add a price limit to a wish, as WebShop does: one of the next four multiples of ten dollars.

    Args:
        instruction: The wish.
        price: Of the product meant, in dollars.
        name: Seeds the draw.

    Returns:
        The wish with the limit, and the limit; unchanged and `NO_LIMIT` where the product is too expensive.
    """
    above = [limit for limit in _LIMITS if limit > price][:4]
    instruction = instruction.strip().rstrip(".")
    if len(above) < 2:
        return instruction, NO_LIMIT
    generator = random.Random(f"limit:{name}")  # noqa: S311 - not for secrets
    limit = max(generator.sample(above, 2))
    return f"{instruction}, and price lower than {limit:.2f} dollars", limit


def _webshop_goals(product: Product, asked: Sequence[Mapping[str, Any]]) -> list[Goal]:
    goals = []
    for number, wish in enumerate(asked):
        try:
            attributes, options = wish["instruction_attributes"], wish["instruction_options"]
            text, limit = price_goal(wish["instruction"], product.price, f"{product.product_id}:{number}")
        except (KeyError, TypeError) as error:
            raise DataError(
                f"read_webshop: an instruction for item {product.product_id} lacks {error}; wanted "
                "`instruction`, `instruction_attributes` and `instruction_options`."
            ) from error
        if attributes:
            values = options.values() if isinstance(options, Mapping) else options
            goals.append(
                Goal(
                    product_id=product.product_id,
                    instruction=text,
                    attributes=tuple(attributes),
                    options=tuple(str(value) for value in values),
                    price_limit=limit,
                )
            )
    return goals


def _webshop_product(item: Mapping[str, Any], known: Mapping[str, Any]) -> Product:
    product_id = str(item["asin"])
    features = item["small_description"]
    price, price_text = _price(item.get("pricing"), product_id)
    options = {
        name.lower(): tuple(str(one["value"]).strip().replace("/", " | ").lower() for one in values)
        for name, values in (item.get("customization_options") or {}).items()
        if values
    }
    return Product(
        product_id=product_id,
        title=item["name"],
        description=item["full_description"] or "",
        features=tuple(features) if isinstance(features, list) else (features or "",),
        attributes=tuple(known.get(product_id, {}).get("attributes", ())),
        options=options,
        price=price,
        price_text=price_text,
        query=item["query"].lower().strip(),
        category=item["product_category"],
    )


def _price(text: str | None, product_id: str) -> tuple[float, str]:
    amounts = [float(one.replace(",", "")) for one in _MONEY.findall(text or "")]
    if not amounts:
        return _DEFAULT_PRICE, f"${_DEFAULT_PRICE}"
    if len(amounts) == 1:
        return amounts[0], f"${amounts[0]}"
    low, high = amounts[:2]
    generator = random.Random(f"price:{product_id}")  # noqa: S311 - not for secrets
    return generator.uniform(low, high), f"${low} to ${high}"


def _json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"read_webshop: {path} does not exist.") from error
    except ValueError as error:
        raise DataError(f"read_webshop: {path} is not valid JSON: {error}.") from error
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "an object"
        raise DataError(f"read_webshop: {path} must hold {wanted}, got {type(value).__name__}.")
    return value
