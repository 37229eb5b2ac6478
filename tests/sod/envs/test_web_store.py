"""The web store: pages, goals, rewards, and the files of WebShop in their own form."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sod.envs import web_store
from sod.envs.expert import expert_conversation
from sod.envs.registry import TaskRequest, build_environment
from sod.envs.store_catalog import NO_LIMIT, Goal, Product, price_goal, read_webshop
from sod.envs.store_generator import make_store
from sod.envs.store_reward import basic_colour, score_purchase, type_factor
from sod.envs.web_store import WebStoreSection, open_store, store_tasks
from sod.errors import ConfigError, DataError
from sod.parsing import parse_hermes
from sod.types import Task

MUG = Product(
    product_id="B1",
    title="Alder Coffee Mug, Hand Painted",
    description="For every day. Lead free.",
    features=("Made to last",),
    attributes=("dishwasher safe",),
    options={"color": ("red", "blue"), "size": ("large", "x-large")},
    price=12.0,
    price_text="$12.0",
    query="coffee mug",
    category="Home › Kitchen › Mugs",
)
GOAL = Goal(
    product_id="B1",
    instruction="i want a mug",
    attributes=("dishwasher safe", "lead free"),
    options=("red", "large"),
    price_limit=20.0,
)


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return WebStoreSection(
        cache=tmp_path_factory.mktemp("store"), num_made_up=60, invalid_action="impossible"
    )


@pytest.fixture(scope="module")
def built(section):
    made = build_environment(section)
    yield made
    made.close()


@pytest.fixture(scope="module")
def tasks(section):
    return store_tasks(make_store(60, seed=0), TaskRequest(num_tasks=20, seed=1))


def act(environment, *actions: str):
    return [environment.step(parse_hermes(f"<action>{action}</action>"), ()) for action in actions][-1]


def text_of(step) -> str:
    return step.messages[0]["content"]


def test_the_expert_gets_everything_that_is_wanted(built, tasks):
    for task in tasks:
        messages = expert_conversation(built.factory(task), task, max_turns=12)
        assert messages[-1]["content"] == "<action>click[buy now]</action>"
        assert messages[1]["content"].startswith("<action>search[")


def test_pages_lead_to_each_other(built, tasks):
    environment = built.factory(tasks[0])
    opening = environment.reset()[0]["content"]
    assert "Wish: i want a " in opening
    assert opening.endswith("You are on the search page.\n\nPossible actions:\n- search[words]")
    results = act(environment, "search[Machine Washable]")
    assert "Page 1 of " in text_of(results)
    product_id = text_of(results).partition("\n[")[2].partition("]")[0]
    assert "Page 2 of " in text_of(act(environment, "click[Next >]"))
    assert text_of(act(environment, "click[< prev]")) == text_of(results)
    item = act(environment, f"click[{product_id.lower()}]")
    assert "Price: $" in text_of(item)
    assert "(none chosen)" in text_of(item)
    assert "It is " in text_of(act(environment, "click[description]"))
    assert "- Made to be" in text_of(act(environment, "click[< prev]", "click[features]"))
    assert text_of(act(environment, "click[< prev]")) == text_of(item)
    option = next(line for line in text_of(item).splitlines() if "none chosen" in line)
    value = option.partition(": ")[2].split(",")[0].partition(" (")[0]
    assert f"({value})" in text_of(act(environment, f"click[{value}]"))
    assert text_of(act(environment, "click[< prev]")) == text_of(results)
    assert text_of(act(environment, "click[back to search]")).startswith("You are on the search page.")
    bought = act(environment, "search[machine washable]", f"click[{product_id}]", "click[buy now]")
    assert bought.is_done
    assert 0.0 <= bought.reward <= 1.0
    assert bought.is_success == (bought.reward == 1.0)


@pytest.mark.parametrize(
    ("before", "action", "reason"),
    [
        ((), "look around", "error: write search[words] or click[what]"),
        ((), "click[buy now]", "error: there is nothing named 'buy now' to click on this page"),
        (("search[lamp]",), "search[mug]", "error: only the search page can search"),
        (("search[lamp]",), "click[P99999]", "error: there is nothing named 'P99999'"),
    ],
)
def test_what_is_not_possible_is_refused_and_leaves_the_page(built, tasks, before, action, reason):
    environment = built.factory(tasks[0])
    environment.reset()
    page = text_of(act(environment, *before)) if before else "You are on the search page."
    step = act(environment, action)
    assert step.results[0].is_error
    assert text_of(step).startswith(reason)
    assert page.splitlines()[0] in text_of(step)


def test_a_search_without_results_stays_on_the_search_page(built, tasks):
    environment = built.factory(tasks[0])
    environment.reset()
    step = act(environment, "search[xylophone]")
    assert text_of(step).startswith("Nothing was found for 'xylophone'.\nYou are on the search page.")
    assert not step.results[0].is_error


@pytest.mark.parametrize(
    ("chosen", "change", "reward"),
    [
        ({"color": "red", "size": "large"}, {}, 1.0),
        ({"color": "red"}, {}, 4 / 5),
        ({}, {}, 3 / 5),
        # "size" wants the very value; a colour may be said more closely.
        ({"color": "crimson red", "size": "x-large"}, {}, 4 / 5),
        ({"color": "red", "size": "large"}, {"price_limit": 11.0}, 4 / 5),
        ({"color": "red", "size": "large"}, {"attributes": ("wool", "lead free")}, 4 / 5),
        # What is chosen beyond the wish counts for nothing.
        ({"color": "red", "size": "large"}, {"options": ()}, 1.0),
    ],
)
def test_reward_counts_attributes_options_and_price(chosen, change, reward):
    assert score_purchase(replace(GOAL, **change), MUG, MUG, chosen).reward == pytest.approx(reward)


@pytest.mark.parametrize(
    ("change", "factor"),
    [
        ({}, 1.0),
        ({"title": "Brisk Desk Lamp"}, 0.0),
        ({"title": "Juno Painted Bowl", "query": "bowl", "category": "Art"}, 0.5),
        ({"title": "Juno Painted Bowl", "query": "bowl", "category": "Mugs › Kitchen"}, 1.0),
        ({"title": "Juno Painted Bowl", "category": "Art"}, 1.0),
        ({"title": "Painted Coffee Pot", "query": "pot", "category": "Art"}, 1.0),
    ],
)
def test_type_factor_follows_title_query_and_categories(change, factor):
    assert type_factor(MUG, replace(MUG, **change)) == factor


def test_type_factor_of_a_long_title_with_one_common_word():
    wanted = replace(MUG, title="alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo mug")
    assert type_factor(wanted, MUG) == 0.1
    # A title without words cannot tell: then query and categories decide.
    assert type_factor(replace(wanted, title="1 2"), MUG) == 1.0
    assert type_factor(replace(wanted, title="1 2", query="", category=""), MUG) == 0.5


def test_colours_are_reduced_to_basic_ones():
    assert basic_colour("Heather Navy") == "navy"
    assert basic_colour("redwood") == "redwood"


def test_a_goal_gets_a_limit_above_its_price():
    text, limit = price_goal("i want it.", 12.0, "a")
    assert text == f"i want it, and price lower than {limit:.2f} dollars"
    assert limit in (30.0, 40.0, 50.0)
    assert price_goal("i want it", 985.0, "a") == ("i want it", NO_LIMIT)


def test_made_up_stores_repeat_and_their_splits_share_no_goal():
    store = make_store(50, seed=3)
    assert store == make_store(50, seed=3)
    assert store != make_store(50, seed=4)
    assert len(store.goals) == 100
    wishes = {
        split: {
            json.dumps(task.fields)
            for task in store_tasks(store, TaskRequest(num_tasks=number, split=split, seed=2))
        }
        for split, number in (("train", 60), ("valid", 20), ("test", 20))
    }
    assert [len(own) for own in wishes.values()] == [60, 20, 20]
    assert not wishes["train"] & (wishes["valid"] | wishes["test"])
    assert not wishes["valid"] & wishes["test"]


ITEMS = [
    {
        "asin": "B000000001",
        "name": "Alder Coffee Mug",
        "full_description": None,
        "small_description": ["Dishwasher safe", "Red glaze"],
        "pricing": "$12.99",
        "customization_options": {
            "Color": [{"value": "Red/White ", "image": "x"}, {"value": "Blue"}],
            "Size": None,
        },
        "category": "garden",
        "query": "Coffee mug ",
        "product_category": "Home › Mugs",
        "images": ["x"],
    },
    {
        "asin": "B000000002",
        "name": "Brisk Lamp",
        "full_description": "Bright.",
        "small_description": "One point",
        "pricing": "$10.00$1,020.00",
        "customization_options": {},
        "category": "garden",
        "query": "lamp",
        "product_category": "Home › Lamps",
        "images": ["x"],
    },
    {
        "asin": "nan",
        "name": "x",
        "full_description": "",
        "small_description": [],
        "query": "",
        "product_category": "",
    },
]
ATTRIBUTES = {"B000000001": {"attributes": ["dishwasher safe"], "instruction": None}}
WISHES = {
    "B000000001": [
        {
            "instruction": "i need a mug that is dishwasher safe.",
            "instruction_attributes": ["dishwasher safe"],
            "instruction_options": ["red | white"],
        },
        {"instruction": "a mug", "instruction_attributes": [], "instruction_options": []},
    ]
}


@pytest.fixture
def webshop(tmp_path):
    paths = {}
    for key, value in (("products", ITEMS), ("attributes", ATTRIBUTES), ("instructions", WISHES)):
        paths[key] = tmp_path / f"{key}.json"
        paths[key].write_text(json.dumps(value))
    return paths


def test_the_files_of_webshop_become_a_store_that_its_expert_can_shop_in(webshop, tmp_path):
    catalogue = read_webshop(**webshop, limit=None)
    mug, lamp = catalogue.products.values()
    assert mug.options == {"color": ("red | white", "blue")}
    assert (mug.price, mug.price_text, mug.query) == (12.99, "$12.99", "coffee mug")
    assert mug.attributes == ("dishwasher safe",)
    assert lamp.attributes == ()
    assert lamp.features == ("One point",)
    assert 10.0 <= lamp.price <= 1020.0
    assert lamp.price_text == "$10.0 to $1020.0"
    assert len(catalogue.goals) == 1
    section = WebStoreSection(cache=tmp_path / "cache", **webshop)
    (task,) = store_tasks(catalogue, TaskRequest(num_tasks=1))
    # As it comes back from a file.
    task = replace(task, fields=json.loads(json.dumps(task.fields)))
    built = build_environment(section)
    messages = expert_conversation(built.factory(task), task, max_turns=5)
    assert "<action>click[red | white]</action>" in [message["content"] for message in messages]
    built.close()
    assert len(open_store(replace(section, max_products=1)).ids) == 1


def test_files_of_another_form_are_named(webshop, tmp_path):
    with pytest.raises(DataError, match=r"none.json does not exist"):
        read_webshop(**{**webshop, "products": tmp_path / "none.json"}, limit=None)
    with pytest.raises(DataError, match=r"products.json must hold an object, got list"):
        read_webshop(**{**webshop, "attributes": webshop["products"]}, limit=None)
    webshop["products"].write_text('[{"asin": "B1"}]')
    with pytest.raises(DataError, match=r"item 1 of .*products.json is not of WebShop's form \(KeyError"):
        read_webshop(**webshop, limit=None)
    webshop["products"].write_text("[")
    with pytest.raises(DataError, match=r"products.json is not valid JSON"):
        read_webshop(**webshop, limit=None)
    webshop["products"].write_text(json.dumps(ITEMS))
    webshop["instructions"].write_text('{"B000000001": [{"instruction": "x"}]}')
    with pytest.raises(DataError, match="an instruction for item B000000001 lacks 'instruction_attributes'"):
        read_webshop(**webshop, limit=None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"products": "p"}, "attributes is missing; give all of products, attributes, instructions"),
        ({"max_products": 5}, "max_products = 5: is not read for a made-up store"),
        (
            {"products": "p", "attributes": "a", "instructions": "i", "store_seed": 1},
            "store_seed = 1: is not read for a store from files",
        ),
    ],
)
def test_settings_that_are_not_read_are_refused(tmp_path, values, words):
    paths = {key: tmp_path / value if isinstance(value, str) else value for key, value in values.items()}
    with pytest.raises(ConfigError, match=words):
        WebStoreSection(cache=tmp_path, **paths)


def test_requests_and_goals_that_cannot_be_met_are_refused(built, tasks):
    store = make_store(10, seed=0)
    with pytest.raises(DataError, match="split is 'dev'; choose one of train, valid, test"):
        store_tasks(store, TaskRequest(num_tasks=1, split="dev"))
    with pytest.raises(DataError, match="num_tasks is 0 and first 0; wanted 1 and 0 or more"):
        store_tasks(store, TaskRequest(num_tasks=0))
    with pytest.raises(DataError, match="20 goals from 0 on asked for, but split 'train' has 12"):
        store_tasks(store, TaskRequest(num_tasks=20))
    with pytest.raises(DataError, match="num_products is 0; ask for at least 1"):
        make_store(0, seed=0)
    with pytest.raises(DataError, match="task 'x' has no goal with"):
        built.factory(Task(task_id="x", messages=tasks[0].messages))
    goal = {**tasks[0].fields["goal"], "product_id": "P77777"}
    with pytest.raises(DataError, match="is product 'P77777', which this store does not have"):
        built.factory(replace(tasks[0], fields={"goal": goal}))


def test_a_machine_without_rapidfuzz_says_what_to_install(section, monkeypatch):
    monkeypatch.setattr(web_store, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"rapidfuzz is not installed; run: pip install 'sod-kernels\[envs\]'"
    ):
        build_environment(section)
