"""Search over a real index, and the questions answered with it."""

from __future__ import annotations

import json
import threading

import pytest

from sod.envs import passages as passages_module
from sod.envs.expert import expert_conversation
from sod.envs.passages import open_passages, read_passages
from sod.envs.registry import build_environment
from sod.envs.search_qa import SearchSection, accepted_answers
from sod.envs.text_index import TextIndex, file_fingerprint, index_file
from sod.errors import ConfigError, DataError
from sod.parsing import parse_hermes
from sod.tools import ToolRunner
from sod.types import Task, ToolOutcome

PASSAGES = [
    (
        "Lake Constance",
        "The lake lies between Germany, Austria and Switzerland. Its largest town is Konstanz.",
    ),
    ("Rhine", "The Rhine flows through Lake Constance and ends in the North Sea near Rotterdam."),
    ("Café Zürich", "A café in Zürich, famous for its cakes."),
    ("Rotterdam", "Rotterdam is the largest port of Europe."),
]
TASK = Task(
    task_id="q",
    messages=({"role": "user", "content": "In which sea does the Rhine end?"},),
    fields={"answer": ["North Sea", "the North Sea (Atlantic)"]},
)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"title": title, "text": text}) + "\n" for title, text in PASSAGES))
    return path


@pytest.fixture
def make(corpus, tmp_path):
    built = []

    def _make(**values):
        made = build_environment(SearchSection(corpus=corpus, cache=tmp_path / "cache", **values))
        built.append(made)
        return made

    yield _make
    for one in built:
        one.close()


def play(environment, *texts: str):
    return [environment.step(parse_hermes(text), ()) for text in texts]


@pytest.mark.parametrize("retriever", ["fts5", "bm25s"])
def test_the_best_passages_come_first_and_unknown_words_find_nothing(corpus, tmp_path, retriever):
    index = open_passages(corpus, retriever=retriever, cache=tmp_path / "cache")
    assert [one.title for one in index.search("the port of Rotterdam", 2)] == ["Rotterdam", "Rhine"]
    assert index.search("xylophone", 3) == []
    assert [one.number for one in index.search("Konstanz", 9)] == [0]
    index.close()


def test_fts_query_text_is_never_syntax_and_accents_and_endings_do_not_matter(corpus, tmp_path):
    index = open_passages(corpus, retriever="fts5", cache=tmp_path)
    for query in ('cakes" OR 1=1 --', "cake AND (", "NEAR(cakes)", "text:cakes*", "zurich", "CAFES"):
        assert index.search(query, 1)[0].title == "Café Zürich", query
    assert index.search("", 3) == index.search('"', 3) == []
    # Stop words count only where there is nothing else.
    assert index.search("which of the", 4)[0].title in {title for title, _ in PASSAGES}
    index.close()
    index.close()


def test_an_index_is_built_once_and_anew_where_the_corpus_changes(corpus, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    open_passages(corpus, retriever="fts5", cache=cache).close()
    monkeypatch.setattr(passages_module, "_jsonl_passages", lambda path: pytest.fail("read again"))
    open_passages(corpus, retriever="fts5", cache=cache).close()
    monkeypatch.undo()
    corpus.write_text(json.dumps({"title": "New", "text": "Only Konstanz"}) + "\n")
    index = open_passages(corpus, retriever="fts5", cache=cache)
    assert [one.title for one in index.search("Konstanz", 5)] == ["New"]
    assert len(list(cache.glob("*.sqlite"))) == 2
    assert not list(cache.glob(".building*"))
    index.close()


@pytest.mark.parametrize("retriever", ["fts5", "bm25s"])
def test_many_threads_search_at_the_same_time(corpus, tmp_path, retriever):
    index = open_passages(corpus, retriever=retriever, cache=tmp_path)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(index.search("Rotterdam port", 1)[0].title))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["Rotterdam"] * 8
    index.close()


def test_corpora_of_search_r1_and_dpr_are_read(tmp_path):
    search_r1 = tmp_path / "wiki.jsonl"
    search_r1.write_text(json.dumps({"id": "0", "contents": '"Rhine"\nIt flows.\nFar.'}) + "\n\n")
    assert list(read_passages(search_r1)) == [("Rhine", "It flows.\nFar.")]
    dpr = tmp_path / "psgs.tsv"
    dpr.write_text('id\ttext\ttitle\n1\t"It ""flows""."\tRhine\n')
    assert list(read_passages(dpr)) == [("Rhine", 'It "flows".')]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", "{", r"a.jsonl row 1 is not valid JSON"),
        ("a.jsonl", '{"title": "x"}', r"row 1 has \['title'\]; wanted the texts `title` and `text`"),
        ("a.jsonl", "[1]", "row 1 has list; wanted"),
        ("a.jsonl", "\n", "there are no texts to index"),
        ("a.tsv", "id\ttext\n1\tx\n", r"row 1 has the columns \['id', 'text'\]; wanted `text` and `title`"),
        ("a.txt", "x", "a.txt must be a .jsonl or .tsv file"),
    ],
)
def test_corpora_of_another_form_are_refused_and_leave_no_index(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=words):
        open_passages(tmp_path / name, retriever="fts5", cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*"))


def test_a_missing_corpus_a_broken_index_and_a_missing_library_are_named(tmp_path, monkeypatch, corpus):
    with pytest.raises(DataError, match=r"the corpus .*none.jsonl does not exist"):
        open_passages(tmp_path / "none.jsonl", retriever="fts5", cache=tmp_path)
    (tmp_path / "bad.sqlite").write_text("not a database, but long enough to be looked at" * 40)
    with pytest.raises(DataError, match=r"bad.sqlite is no index: .*; delete it to have it rebuilt"):
        TextIndex(tmp_path / "bad.sqlite")
    monkeypatch.setitem(__import__("sys").modules, "bm25s", None)
    with pytest.raises(ConfigError, match="bm25s is not installed; run: pip install bm25s"):
        open_passages(corpus, retriever="bm25s", cache=tmp_path)


def test_bm25s_without_passages_is_refused():
    with pytest.raises(DataError, match="there are no passages to index"):
        passages_module.BM25SIndex([])


def test_a_fingerprint_follows_the_files(tmp_path, corpus):
    before = file_fingerprint([corpus])
    assert before == file_fingerprint([corpus])
    corpus.write_text(corpus.read_text() + " ")
    assert file_fingerprint([corpus]) != before
    assert index_file([("a", "b")], "x", cache=tmp_path) == index_file([], "x", cache=tmp_path)


def test_search_then_answer(make):
    environment = make(num_passages=2).factory(TASK)
    (message,) = environment.reset()
    assert message["content"].endswith("\n\nQuestion: In which sea does the Rhine end?")
    assert "<search>" in message["content"]
    search, answer = play(
        environment,
        "<think>hm</think><search>Rhine  Rotterdam</search>",
        "So: <answer> The north sea. </answer>",
    )
    assert search.messages[0]["role"] == "user"
    text = search.messages[0]["content"]
    assert text.startswith("<information>\nDoc 1 (Title: Rhine) The Rhine flows")
    assert text.count("Doc ") == 2
    assert text.endswith("</information>")
    assert (search.is_done, search.reward) == (False, 0.0)
    assert (answer.is_done, answer.is_success, answer.reward) == (True, True, 1.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("The North Sea.", "error: no search and no answer were found"),
        ("<search>a</search><answer>b</answer>", "error: 2 tags were found"),
        ("<search> </search>", "error: the search is empty"),
        ("<search>a</answer>", "error: no search and no answer were found"),
    ],
)
def test_a_turn_that_is_neither_search_nor_answer_says_why_and_costs(make, text, reason):
    environment = make(invalid_penalty=0.1).factory(TASK)
    environment.reset()
    (step,) = play(environment, text)
    assert step.messages[0]["content"].startswith(reason)
    assert step.results[0].outcome is ToolOutcome.INVALID_JSON
    assert (step.reward, step.is_done) == (-0.1, False)


def test_f1_rewards_near_answers_but_only_a_match_solves(make):
    environment = make(reward="f1").factory(TASK)
    environment.reset()
    (step,) = play(environment, "<answer>in the North Sea</answer>")
    assert step.reward == pytest.approx(0.8)
    assert not step.is_success


def test_the_tool_form_offers_a_real_tool(make):
    built = make(form="tool", invalid_penalty=0.1, max_observation_chars=64)
    environment = built.factory(TASK)
    assert "Call the search tool" in environment.reset()[0]["content"]
    call = '<tool_call>{"name": "search", "arguments": {"query": "Rhine"}}</tool_call>'
    bad = '<tool_call>{"name": "search_", "arguments": {}}</tool_call>'
    with ToolRunner(built.tools) as runner:
        turn, wrong = parse_hermes(call), parse_hermes(bad)
        good = environment.step(turn, runner.run(turn.calls))
        step = environment.step(wrong, runner.run(wrong.calls))
    assert good.messages[0]["role"] == "tool"
    assert good.messages[0]["name"] == "search"
    assert good.messages[0]["content"].startswith("Doc 1 (Title")
    assert len(good.messages[0]["content"]) <= 64
    assert good.reward == 0.0
    assert step.reward == -0.1
    assert "Did you mean search" in step.messages[0]["content"]
    (plain,) = play(environment, "North Sea")
    assert plain.is_success
    (tagged,) = play(environment, "It is <answer>North  Sea</answer>.")
    assert tagged.is_success


def test_the_expert_searches_once_and_answers(make):
    built = make()
    messages = expert_conversation(built.factory(TASK), TASK, max_turns=2)
    assert [message["content"] for message in messages if message["role"] == "assistant"] == [
        "<search>In which sea does the Rhine end?</search>",
        "<answer>North Sea</answer>",
    ]
    with pytest.raises(DataError, match='an expert for form = "tags" only'):
        make(form="tool").factory(TASK).expert_turn()


def test_nothing_found_is_said(make):
    environment = make().factory(TASK)
    environment.reset()
    (step,) = play(environment, "<search>xylophone</search>")
    assert step.messages[0]["content"] == "<information>\nNo passage was found.\n</information>"


@pytest.mark.parametrize(
    ("value", "answers"),
    [("42", ("42",)), (["a", " ", "b"], ("a", "b")), ({"target": ["x"]}, ("x",)), ({"target": "x"}, ("x",))],
)
def test_accepted_answers_come_in_several_forms(value, answers):
    assert accepted_answers(Task(task_id="q", messages=TASK.messages, fields={"answer": value})) == answers


@pytest.mark.parametrize("value", [None, [], [""], [1], {"other": 1}])
def test_a_task_without_an_answer_is_refused(make, value):
    with pytest.raises(DataError, match=r"task 'q' has the answer .*; wanted a text or a list of texts"):
        make().factory(Task(task_id="q", messages=TASK.messages, fields={"answer": value}))


def test_a_task_without_a_question_is_refused(make):
    with pytest.raises(DataError, match="task 'q' must end with the question"):
        make().factory(Task(task_id="q", messages=(), fields={"answer": "x"}))
