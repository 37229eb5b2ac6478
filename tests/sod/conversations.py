"""Conversations rolled out by hand, in the tokens and the template of a student."""

from __future__ import annotations

from sod.chat import ChatRenderer
from sod.chat_templates import TEMPLATES
from sod.tools import tool
from sod.translation import make_pair
from sod.types import StopReason, Trajectory, Turn
from tests.kernels.tokenizer_pairs import byte_level as plain_bytes
from tests.sod.trained_tokenizers import trained_tokenizer

OPENING = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17 plus 25?"})


@tool
def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


def tokenizer_of(kind, template):
    """A tokenizer of `trained_tokenizers`, or "digits": other merges, every digit a token, no tags."""
    if kind == "digits":
        return plain_bytes(340, splits_digits=True)
    return trained_tokenizer(kind, template)


def make_sides(student, teacher, *, tools=(), bridge=(), **options):
    """Renderer of the student and the pair; each side is (kind of tokenizer, name of its template)."""
    tokenizers = tokenizer_of(*student), tokenizer_of(*teacher)
    renderer = ChatRenderer(
        tokenizers[0], tools=tools, chat_template=TEMPLATES[student[1]], call_format="hermes"
    )
    pair = make_pair(tokenizers, renderer, bridge=bridge, chat_template=TEMPLATES[teacher[1]], **options)
    return renderer, pair


def rolled_out(pair, renderer, turns, *, opening=OPENING, segments=(0,)):
    """A trajectory whose turns have the texts (or ids), ends (stopped or cut off) and observations given."""
    made, messages = [], opening
    for index, (written, is_cut, observation) in enumerate(turns):
        ids = written
        if isinstance(written, str):
            ids = pair.student_tokenizer(written, add_special_tokens=False)["input_ids"]
        if index in segments:
            messages = opening if index == 0 else ({"role": "user", "content": f"Turn {index}."},)
            context = renderer.prompt_ids(messages)
        else:
            context = renderer.observation_ids(made[-1].sampled_ids, messages)
        made.append(
            Turn(
                context_ids=context,
                sampled_ids=(*ids, *(() if is_cut else (renderer.end_id,))),
                stop_reason=StopReason.LENGTH if is_cut else StopReason.STOP_TOKEN,
                messages=messages,
            )
        )
        messages = observation
    return Trajectory(task_id="task", turns=tuple(made), segments=segments)
