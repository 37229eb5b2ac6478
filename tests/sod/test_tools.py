"""Functions as tools: their schemas, and what the checks of arguments say."""

import asyncio
from enum import Enum
from typing import Literal

import pytest
from transformers.utils import get_json_schema

from sod.errors import ToolDefinitionError
from sod.tools import Tool, tool, truncate_middle
from sod.tools.arguments import argument_problems


def search(query: str, limit: int = 3, language: Literal["en", "de"] = "en") -> str:
    """Searches the documents.

    Args:
        query: What to look for.
        limit: Most documents returned.
        language: Language of the documents.
    """
    return f"{query} {limit} {language}"


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


def everything(
    number: float,
    flag: bool,
    words: list[str],
    pair: tuple[int, str],
    table: dict[str, int],
    either: int | str,
    maybe: str | None,
    nested: list[list[int]] | dict[str, bool],
    colour: Colour,
    anything: dict,
) -> str:
    """Takes everything.

    Args:
        number: n.
        flag: f.
        words: w.
        pair: p.
        table: t.
        either: e.
        maybe: m.
        nested: n.
        colour: c.
        anything: a.
    """
    return "ok"


GOOD = {
    "number": 1,
    "flag": True,
    "words": ["a"],
    "pair": [1, "a"],
    "table": {"a": 1},
    "either": "x",
    "maybe": None,
    "nested": [[1], []],
    "colour": "red",
    "anything": {"a": [None]},
}


def test_schema_is_the_one_transformers_makes():
    made = tool(search)
    assert made.schema == get_json_schema(search)
    assert made.name == "search"
    assert made.parameters["required"] == ["query"]
    assert made.function("a", 1) == "a 1 en"


def test_method_and_coroutine_function_become_tools():
    class Store:
        def __init__(self):
            self.kept = []

        def keep(self, what: str) -> str:
            """Keeps something.

            Args:
                what: The thing.
            """
            self.kept.append(what)
            return "kept"

    async def wait(seconds: float) -> str:
        """Waits.

        Args:
            seconds: How long.
        """
        await asyncio.sleep(seconds)
        return "waited"

    store = Store()
    made = Tool.from_function(store.keep)
    assert list(made.parameters["properties"]) == ["what"]
    made.function(what="x")
    assert store.kept == ["x"]
    assert tool(wait).parameters["properties"]["seconds"]["type"] == "number"


def no_docstring(x: int): ...


def no_hint(x):
    """Does.

    Args:
        x: A thing.
    """


def no_description(x: int):
    """Does."""


def unknown_hint(x: "Nonsense"):  # noqa: F821
    """Does.

    Args:
        x: A thing.
    """


def object_hint(x: range):
    """Does.

    Args:
        x: A thing.
    """


def bad_choices(x: str):
    """Does.

    Args:
        x: A thing (choices: [a, b])
    """


def star(*x: int):
    """Does.

    Args:
        x: Things.
    """


def double_star(**x: int):
    """Does.

    Args:
        x: Things.
    """


def positional(x: int, /):
    """Does.

    Args:
        x: A thing.
    """


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (no_docstring, "no_docstring cannot be described to a model: .*no docstring"),
        (no_hint, "no_hint cannot be described to a model: Argument x is missing a type hint"),
        (no_description, "no_description cannot be described .* no description for the argument 'x'"),
        (unknown_hint, "unknown_hint cannot be described to a model: name 'Nonsense' is not defined"),
        (object_hint, "object_hint cannot be described to a model: .*range"),
        (bad_choices, "bad_choices cannot be described to a model: Expecting value"),
        (star, r"star takes `\*x: int`, which a model cannot give by name. Name every argument."),
        (double_star, r"double_star takes `\*\*x: int`, which a model cannot give by name"),
        (positional, "positional takes `x: int`, which a model cannot give by name"),
        (lambda x: x, "has no name; got a function, wanted a function or a method. Write it with `def`."),
        (3, "3 has no name; got a int"),
    ],
)
def test_function_that_cannot_be_offered_is_named_with_what_is_missing(function, message):
    with pytest.raises(ToolDefinitionError, match=rf"(?s)^Tool\.from_function: .*{message}"):
        tool(function)


def test_argument_of_a_type_that_json_has_not_is_refused():
    import torch

    def listen(sound: torch.Tensor):
        """Listens.

        Args:
            sound: Sound.
        """

    with pytest.raises(
        ToolDefinitionError, match="argument `sound` of listen is of type audio, which no JSON"
    ):
        tool(listen)


def test_good_arguments_have_no_problems():
    parameters = tool(everything).parameters
    assert argument_problems(parameters, GOOD) == []
    others = {"number": 0.5, "either": 3, "maybe": "m", "nested": {"a": False}, "table": {}, "words": []}
    assert argument_problems(parameters, GOOD | others) == []
    assert argument_problems(tool(search).parameters, {"query": "q"}) == []


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("number", "1", 'Argument `number` is "1", wanted number.'),
        ("number", True, "Argument `number` is true, wanted number."),
        ("flag", 1, "Argument `flag` is 1, wanted boolean."),
        ("words", "a", 'Argument `words` is "a", wanted array of string.'),
        ("words", ["a", 1], "Argument `words`[1] is 1, wanted string."),
        ("pair", [1], "Argument `pair` has 1 items, wanted 2."),
        ("pair", ["a", "b"], 'Argument `pair`[0] is "a", wanted integer.'),
        ("table", {"a": 1.5}, 'Argument `table`["a"] is 1.5, wanted integer.'),
        ("either", 1.5, "Argument `either` is 1.5, wanted integer or string."),
        ("either", None, "Argument `either` is null, wanted integer or string."),
        ("maybe", 1, "Argument `maybe` is 1, wanted string or null."),
        ("nested", [["a"]], 'Argument `nested` is [["a"]], wanted array of array of integer or object.'),
        ("colour", "RED", 'Argument `colour` is "RED", wanted one of "red", "blue".'),
        ("anything", [], "Argument `anything` is [], wanted object."),
        ("number", "x" * 200, 'Argument `number` is "' + "x" * 79 + "..., wanted number."),
    ],
)
def test_wrong_value_is_named_with_what_was_wanted(name, value, problem):
    problems = argument_problems(tool(everything).parameters, GOOD | {name: value})
    assert problems[0] == problem
    assert len(problems) == 2


def test_missing_and_unexpected_arguments_are_named_with_the_signature():
    assert argument_problems(tool(search).parameters, {"qurey": "x", "zzz": 1}) == [
        "Argument `query` is missing; wanted string.",
        "There is no argument `qurey`. Did you mean `query`?",
        "There is no argument `zzz`.",
        'The arguments are `query` (string, required), `limit` (integer), `language` (one of "en", "de").',
    ]


def test_arguments_that_are_no_object_are_refused():
    (problem,) = argument_problems(tool(search).parameters, ["x"])
    assert problem.startswith('The arguments are ["x"], wanted an object with `query` (string, required)')


def test_short_text_is_not_touched():
    assert truncate_middle("x" * 64, 64) == "x" * 64


@pytest.mark.parametrize("max_chars", [64, 65, 100, 999])
@pytest.mark.parametrize("num_chars", [1000, 1001, 123_456])
def test_long_text_keeps_both_ends_and_says_what_is_missing(max_chars, num_chars):
    text = "a" * (num_chars // 2) + "z" * (num_chars - num_chars // 2)
    cut = truncate_middle(text, max_chars)
    assert max_chars - 4 <= len(cut) <= max_chars
    head, middle = cut.split("\n... [")
    dropped, tail = middle.split(" characters dropped] ...\n")
    assert len(head) + int(dropped) + len(tail) == num_chars
    assert set(head) == {"a"}
    assert set(tail) == {"z"}


def test_too_little_room_is_refused():
    with pytest.raises(ValueError, match=r"truncate_middle: max_chars is 63, wanted at least 64\."):
        truncate_middle("x", 63)
