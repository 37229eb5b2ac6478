"""How well a purchase fits a wish, by the rules of WebShop.

r = r_type · (matched attributes + matched options + [price ≤ limit]) / (attributes + options + 1)

Source: WebShop (Yao et al. 2022), section 3 and its released code. A deviation: where the release takes
the nouns of both titles by a language model, we take their words without stop words, so that nothing has to
be downloaded. Another: no more options count than are wanted, so that no reward is above 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from sod.envs.store_catalog import Goal, Product

_SIMILAR = 85
_LOW_TITLE = 0.1
_SUFFICIENT_TITLE = 0.2
_EXACT_OPTIONS = ("size",)
_WORD = re.compile(r"[a-z]{2,}")
_STOP_WORDS = frozenset(["and", "by", "for", "from", "in", "of", "on", "or", "set", "the", "to", "with"])
_COLOURS_TEXT = """
beige black blue bronze brown burgundy charcoal copper coral cream cyan emerald gold gray green grey indigo
ivory khaki lavender lilac lime magenta maroon mint navy olive orange peach pink plum purple red rose ruby
sand silver tan teal turquoise violet white yellow
"""
_COLOURS: tuple[str, ...] = tuple(_COLOURS_TEXT.split())


@dataclass(frozen=True, kw_only=True)
class PurchaseScore:
    """A purchase, judged.

    Attributes:
        reward: In [0, 1]; 1 where everything fits.
        type_factor: 1, 0.5, 0.1 or 0: how much the product is of the wanted kind.
        num_attributes: Wanted attributes that it has.
        num_options: Wanted options that were chosen.
        is_cheap_enough: Whether its price is within the limit.
    """

    reward: float
    type_factor: float
    num_attributes: int
    num_options: int
    is_cheap_enough: bool


def score_purchase(goal: Goal, wanted: Product, bought: Product, chosen: Mapping[str, str]) -> PurchaseScore:
    """Judge a purchase.

    Args:
        goal: The wish.
        wanted: The product that the wish was made from.
        bought: What was bought.
        chosen: Options that were chosen, name to value.

    Returns:
        The score with its parts.
    """
    factor = type_factor(wanted, bought)
    num_attributes = sum(_has_attribute(bought, attribute) for attribute in goal.attributes)
    num_fitting = sum(_is_wanted_option(bought, goal, name, value) for name, value in chosen.items())
    num_options = min(num_fitting, len(goal.options))
    is_cheap_enough = bought.price <= goal.price_limit
    matched = num_attributes + num_options + is_cheap_enough
    return PurchaseScore(
        reward=factor * matched / (len(goal.attributes) + len(goal.options) + 1),
        type_factor=factor,
        num_attributes=num_attributes,
        num_options=num_options,
        is_cheap_enough=is_cheap_enough,
    )


def type_factor(wanted: Product, bought: Product) -> float:
    """Say how much a product is of the wanted kind.

    Args:
        wanted: The product meant.
        bought: Another one, or the same.

    Returns:
        0 where the titles share no word, 0.1 below a tenth of the wanted title's words; otherwise 1 where
        the query, two categories or more than a fifth of the title's words agree, else 0.5.
    """
    wanted_words, bought_words = _title_words(wanted.title), _title_words(bought.title)
    # A title without words counts as sharing a fifth.
    share = len(wanted_words & bought_words) / len(wanted_words) if wanted_words else _SUFFICIENT_TITLE
    if share == 0.0:
        return 0.0
    if share < _LOW_TITLE:
        return 0.1
    same_categories = _categories(wanted) & _categories(bought)
    is_match = wanted.query == bought.query or len(same_categories) >= 2 or share > _SUFFICIENT_TITLE
    return 1.0 if is_match else 0.5


def are_similar(one: str, other: str) -> bool:
    """Tell whether two short texts say the same, word order and additions aside.

    Args:
        one: A text.
        other: Another.

    Returns:
        Whether their token set ratio is above 85 of 100.
    """
    # Imported here so that the settings of the store are known on machines without the library.
    from rapidfuzz import fuzz, utils

    return fuzz.token_set_ratio(one, other, processor=utils.default_process) > _SIMILAR


def basic_colour(value: str) -> str:
    """Reduce "heather navy" to "navy"; a text without a known colour stays as it is."""
    words = value.lower().split()
    return next((colour for colour in _COLOURS if colour in words), value)


def _has_attribute(product: Product, wanted: str) -> bool:
    return any(are_similar(own, wanted) for own in product.attributes) or wanted.lower() in product.text


def _is_wanted_option(product: Product, goal: Goal, name: str, value: str) -> bool:
    value = basic_colour(value)
    wanted = [basic_colour(option) for option in goal.options]
    if name.lower() in _EXACT_OPTIONS:
        is_match = value in wanted
    else:
        is_match = any(are_similar(option, value) for option in wanted)
    return is_match or value in product.text


def _title_words(title: str) -> set[str]:
    return set(_WORD.findall(title.lower())) - _STOP_WORDS


def _categories(product: Product) -> set[str]:
    return {part.strip() for part in product.category.split("›")}
