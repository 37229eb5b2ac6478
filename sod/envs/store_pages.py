"""The pages of a web store, and what a click on them does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sod.envs.store_catalog import Catalogue, Goal, Product
from sod.envs.store_reward import are_similar, score_purchase
from sod.envs.text_game import Observation
from sod.envs.text_index import TextIndex
from sod.errors import DataError

PRODUCTS_PER_PAGE = 10
MAX_RESULTS = 50

_SUB_PAGES = ("description", "features")
_ACTION = re.compile(r"(search|click)\s*\[(.+)\]", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Store:
    """A catalogue that can be searched.

    Attributes:
        catalogue: Products and goals.
        index: Of the products, in the order of the catalogue.
        ids: Product ids in that order.
    """

    catalogue: Catalogue
    index: TextIndex
    ids: tuple[str, ...]

    def search(self, words: str) -> list[Product]:
        """Find at most `MAX_RESULTS` products, the best first."""
        found = self.index.search(words, MAX_RESULTS)
        return [self.catalogue.products[self.ids[one.number]] for one in found]


class StoreGame:
    """One visit to the store."""

    def __init__(self, store: Store, goal: Goal) -> None:
        """Enter.

        Args:
            store: The store.
            goal: What the customer wants.
        """
        self._store = store
        self._goal = goal
        self._results: Sequence[Product] = ()
        self._page = 0
        self._product: Product | None = None
        self._sub_page = ""
        self._chosen: dict[str, str] = {}

    def begin(self) -> Observation:
        """Show the search page."""
        self._leave_results()
        return self._view()

    def act(self, action: str) -> Observation:
        """Search or click."""
        match = _ACTION.fullmatch(action.strip())
        if match is None:
            return self._refusal("write search[words] or click[what]")
        verb, body = match.group(1).lower(), match.group(2).strip()
        if verb == "search":
            return self._search(body)
        clickable = {name.lower(): name for name in self._clickable()}
        if body.lower() not in clickable:
            return self._refusal(f"there is nothing named {body!r} to click on this page")
        return self._click(clickable[body.lower()])

    def expert_action(self) -> str:
        """Give the next step of a direct way to the product that the goal was made from.

        Returns:
            The action.

        Raises:
            DataError: A search for the product's title does not find it.
        """
        wanted = self._wanted()
        if self._product is None and not self._results:
            return f"search[{wanted.title}]"
        if self._product is None:
            return f"click[{self._expert_result(wanted)}]"
        if self._product != wanted or self._sub_page:
            return "click[< prev]"
        for name, values in wanted.options.items():
            value = self._wanted_value(values)
            if value is not None and self._chosen.get(name) != value:
                return f"click[{value}]"
        return "click[buy now]"

    def close(self) -> None:
        """Do nothing: the store belongs to whoever opened it."""

    def _expert_result(self, wanted: Product) -> str:
        if wanted not in self._results:
            raise DataError(f"StoreGame: a search for {wanted.title!r} does not find it; take another goal.")
        page = self._results.index(wanted) // PRODUCTS_PER_PAGE
        if page == self._page:
            return wanted.product_id
        return "next >" if page > self._page else "< prev"

    def _wanted_value(self, values: Sequence[str]) -> str | None:
        # "large" is similar to "x-large", so what is equal comes first.
        equal = [value for value in values if value in self._goal.options]
        similar = [value for value in values if any(are_similar(value, one) for one in self._goal.options)]
        return next(iter(equal + similar), None)

    def _wanted(self) -> Product:
        return self._store.catalogue.products[self._goal.product_id]

    def _search(self, words: str) -> Observation:
        if self._product is not None or self._results:
            return self._refusal("only the search page can search; click[back to search] first")
        self._results = self._store.search(words)
        if not self._results:
            return Observation(text=f"Nothing was found for {words!r}.\n{self._view().text}")
        return self._view()

    def _click(self, name: str) -> Observation:
        if name == "back to search":
            self._leave_results()
        elif name == "buy now":
            return self._buy()
        elif name == "next >":
            self._page += 1
        elif name == "< prev":
            self._back()
        elif name in _SUB_PAGES:
            self._sub_page = name
        elif self._product is None:
            self._product, self._chosen = self._store.catalogue.products[name], {}
        else:
            option = next(option for option, values in self._product.options.items() if name in values)
            self._chosen[option] = name
        return self._view()

    def _back(self) -> None:
        if self._sub_page:
            self._sub_page = ""
        elif self._product is not None:
            self._product = None
        else:
            self._page -= 1

    def _leave_results(self) -> None:
        self._results, self._page, self._product, self._sub_page, self._chosen = (), 0, None, "", {}

    def _buy(self) -> Observation:
        if self._product is None:
            raise DataError("StoreGame: nothing to buy; call begin() first.")
        score = score_purchase(self._goal, self._wanted(), self._product, self._chosen)
        return Observation(
            text=f"You bought {self._product.title}.",
            score=score.reward,
            is_done=True,
            is_success=score.reward == 1.0,
        )

    def _clickable(self) -> tuple[str, ...]:
        if self._product is not None and self._sub_page:
            return ("back to search", "< prev")
        if self._product is not None:
            values = dict.fromkeys(value for values in self._product.options.values() for value in values)
            return ("back to search", "< prev", *_SUB_PAGES, *values, "buy now")
        if not self._results:
            return ()
        begin = self._page * PRODUCTS_PER_PAGE
        shown = self._results[begin : begin + PRODUCTS_PER_PAGE]
        moves: tuple[str, ...] = ("back to search",)
        moves += ("next >",) if begin + PRODUCTS_PER_PAGE < len(self._results) else ()
        moves += ("< prev",) if self._page else ()
        return (*moves, *(product.product_id for product in shown))

    def _view(self) -> Observation:
        actions = tuple(f"click[{name}]" for name in self._clickable()) or ("search[words]",)
        return Observation(text=self._text(), actions=actions)

    def _text(self) -> str:
        product = self._product
        if product is None and not self._results:
            return "You are on the search page."
        if product is None:
            begin = self._page * PRODUCTS_PER_PAGE
            shown = self._results[begin : begin + PRODUCTS_PER_PAGE]
            lines = [f"[{one.product_id}] {one.title}, {one.price_text}" for one in shown]
            pages = -(-len(self._results) // PRODUCTS_PER_PAGE)
            return "\n".join([f"Page {self._page + 1} of {pages}:", *lines])
        if self._sub_page == "description":
            return product.description or "There is no description."
        if self._sub_page == "features":
            return "\n".join(f"- {feature}" for feature in product.features)
        lines = [product.title, f"Price: {product.price_text}"]
        for name, values in product.options.items():
            chosen = self._chosen.get(name, "none chosen")
            lines.append(f"{name}: {', '.join(values)} ({chosen})")
        return "\n".join(lines)

    def _refusal(self, reason: str) -> Observation:
        view = self._view()
        return Observation(text=f"error: {reason}\n\n{view.text}", actions=view.actions, is_understood=False)
