"""Questions answered with a search engine over a local corpus, as in Search-R1.

In the form "tags" a turn holds either `<search>words</search>`, answered with
`<information>passages</information>`, or `<answer>text</answer>`, which ends the attempt. In the form
"tool" the student calls `search(query)`, and the first turn without a call is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from sod.config_environments import ActionSection, penalty_of
from sod.config_schema import Above, AtLeast, AtMost
from sod.envs.base import StepResult
from sod.envs.passages import PassageIndex, Retriever, open_passages
from sod.envs.registry import BuiltEnvironment, EnvironmentEntry
from sod.errors import DataError
from sod.parsing import ParsedTurn
from sod.rewards import f1, qa_exact
from sod.tools import Tool, tool
from sod.tools.truncation import truncate_middle
from sod.types import Message, Task, ToolOutcome, ToolResult

_TAG = re.compile(r"<(search|answer)>(.*?)</\1>", re.DOTALL)
_TAGS_INSTRUCTION = (
    "Answer the question below. Think first in every turn. Then either search for what you do not know, with "
    "<search>words to look for</search>, and read what comes back between <information> and </information>; "
    "or, once you know, end with the answer alone, as short as possible: <answer>Beijing</answer>."
)
_TOOL_INSTRUCTION = (
    "Answer the question below. Call the search tool for what you do not know, as often as you need. End "
    "with a turn without a call that holds the answer alone, as short as possible: <answer>Beijing</answer>."
)


@dataclass(frozen=True, kw_only=True)
class SearchSection(ActionSection):
    """Open questions, answered with searches in a corpus on this machine."""

    name: str = "search_qa"
    """Name of the environment."""
    corpus: Path
    """Passages: .jsonl with `title` and `text`, or `contents`; or .tsv with `text` and `title`."""
    cache: Path
    """Folder that the index is built in, once; it takes about as much room as the corpus."""
    retriever: Literal["fts5", "bm25s"] = "fts5"
    """"fts5" searches a file with SQLite, "bm25s" holds index and passages in memory."""
    num_passages: Annotated[int, Above(0), AtMost(100)] = 3
    """Passages given back by a search."""
    form: Literal["tags", "tool"] = "tags"
    """"tags" reads <search> and <answer> in the text, "tool" offers a tool to call."""
    reward: Literal["exact_match", "f1"] = "exact_match"
    """How an answer is scored; an attempt is solved only by an exact match."""
    max_observation_chars: Annotated[int, AtLeast(64)] = 4096
    """Longest text of a search's passages, in characters; the middle is cut out."""


class SearchEnvironment:
    """One attempt at one question.

    Attributes:
        tools: `search` in the form "tool", otherwise none.
    """

    tools: Sequence[Tool]

    def __init__(
        self, task: Task, section: SearchSection, index: PassageIndex, tools: Sequence[Tool] = ()
    ) -> None:
        """Prepare one attempt.

        Args:
            task: Its last message is the question; `fields` has the accepted answers.
            section: Settings.
            index: Finds passages.
            tools: What is offered in the form "tool".

        Raises:
            DataError: The task has no answer or does not end with a user message.
        """
        self.tools = tuple(tools)
        self._task = task
        self._section = section
        self._index = index
        self._accepted = accepted_answers(task)
        self._scored = replace(task, fields={**task.fields, "answer": list(self._accepted)})
        self._num_searches = 0
        if not task.messages or task.messages[-1]["role"] != "user":
            raise DataError(f"search_qa: task {task.task_id!r} must end with the question as a user message.")

    def reset(self) -> tuple[Message, ...]:
        """Begin: the instruction, then the question."""
        self._num_searches = 0
        *before, question = self._task.messages
        instruction = _TOOL_INSTRUCTION if self._section.form == "tool" else _TAGS_INSTRUCTION
        return (*before, {**question, "content": f"{instruction}\n\nQuestion: {question['content']}"})

    def step(self, turn: ParsedTurn, results: tuple[ToolResult, ...]) -> StepResult:
        """Answer one turn; see `sod.envs.base.Environment.step`."""
        if self._section.form == "tool":
            return self._tool_step(turn, results)
        found = _TAG.findall(turn.content)
        if len(found) != 1:
            reason = "no search and no answer were found" if not found else f"{len(found)} tags were found"
            return self._refused(f"error: {reason}; write exactly one <search> or one <answer> per turn")
        kind, body = found[0][0], " ".join(found[0][1].split())
        if kind == "answer":
            return self._answered(body)
        if not body:
            return self._refused("error: the search is empty; write words to look for")
        self._num_searches += 1
        text = f"<information>\n{self.passages(body)}\n</information>"
        return _shown(ToolResult(name="search", outcome=ToolOutcome.OK, text=text))

    def close(self) -> None:
        """Do nothing: the index belongs to whoever opened it."""

    def passages(self, query: str) -> str:
        """Search, and write what was found.

        Args:
            query: Any words.

        Returns:
            The passages, numbered, with their titles; or that there are none.
        """
        return found_text(self._index, query, self._section)

    def expert_turn(self) -> str:
        """Give what an expert would write now: one search for the question, then the accepted answer.

        Returns:
            A whole assistant turn of the form "tags".

        Raises:
            DataError: The form is "tool".
        """
        if self._section.form == "tool":
            raise DataError('search_qa: there is an expert for form = "tags" only; take that form.')
        if self._num_searches == 0:
            return f"<search>{self._task.messages[-1]['content']}</search>"
        return f"<answer>{self._accepted[0]}</answer>"

    def _tool_step(self, turn: ParsedTurn, results: tuple[ToolResult, ...]) -> StepResult:
        if turn.calls:
            messages = tuple(
                {"role": "tool", "content": one.text, **({"name": one.name} if one.name else {})}
                for one in results
            )
            penalty = penalty_of(self._section) if any(one.is_error for one in results) else 0.0
            return StepResult(messages=messages, results=results, reward=-penalty)
        answers = [body for kind, body in _TAG.findall(turn.content) if kind == "answer"]
        return self._answered(" ".join(answers[-1].split()) if answers else turn.content)

    def _answered(self, answer: str) -> StepResult:
        is_match = qa_exact(self._scored, answer)
        reward = is_match if self._section.reward == "exact_match" else f1(self._scored, answer)
        return StepResult(reward=reward, is_done=True, is_success=bool(is_match))

    def _refused(self, text: str) -> StepResult:
        step = _shown(ToolResult(name="", outcome=ToolOutcome.INVALID_JSON, text=text))
        return StepResult(messages=step.messages, results=step.results, reward=-penalty_of(self._section))


def accepted_answers(task: Task) -> tuple[str, ...]:
    """Read the accepted answers of a task.

    Args:
        task: `fields["answer"]` is a text, a list of texts, or an object with a list under `target`.

    Returns:
        At least one.

    Raises:
        DataError: There is none.
    """
    value: Any = task.fields.get("answer")
    if isinstance(value, dict):
        value = value.get("target")
    answers = [value] if isinstance(value, str) else value
    if not isinstance(answers, Sequence) or not all(isinstance(one, str) for one in answers):
        answers = ()
    answers = tuple(one for one in answers if one.strip())
    if not answers:
        raise DataError(
            f"search_qa: task {task.task_id!r} has the answer {value!r}; wanted a text or a list of texts. "
            "Set [data] answer_column, or [data] form for a published data set."
        )
    return answers


def found_text(index: PassageIndex, query: str, section: SearchSection) -> str:
    """Search an index and write what was found; see `SearchEnvironment.passages`."""
    found = index.search(query, section.num_passages)
    if not found:
        return "No passage was found."
    parts = [
        f"Doc {number} (Title: {one.title}) {' '.join(one.text.split())}"
        for number, one in enumerate(found, start=1)
    ]
    return truncate_middle("\n".join(parts), section.max_observation_chars)


def build(section: SearchSection) -> BuiltEnvironment:
    """Build the environment; its index is built where it is not there yet.

    Args:
        section: Settings.

    Returns:
        The environment, for tasks with a question and its accepted answers.

    Raises:
        SodError: The corpus cannot be read, or the retriever is not installed.
    """
    kind: Retriever = section.retriever
    index = open_passages(section.corpus, retriever=kind, cache=section.cache)

    def search(query: str) -> str:
        """Search an encyclopedia and return the best passages.

        Args:
            query: Words to look for.
        """
        return found_text(index, query, section)

    tools = (tool(search),) if section.form == "tool" else ()

    def factory(task: Task) -> SearchEnvironment:
        return SearchEnvironment(task, section, index, tools)

    return BuiltEnvironment(factory=factory, tools=tools, close=index.close)


def _shown(result: ToolResult) -> StepResult:
    return StepResult(messages=({"role": "user", "content": result.text},), results=(result,))


ENTRY = EnvironmentEntry(options=SearchSection, build=build)
