"""Hypothesis strategies for the loop's data."""

from __future__ import annotations

from hypothesis import strategies as st

from sod.types import Drift, EndReason, StopReason, ToolCall, ToolOutcome, ToolResult, Trajectory, Turn

token_ids = st.integers(0, 511)
log_probs = st.floats(-50.0, 0.0, width=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
calls = st.builds(ToolCall, name=st.text(), arguments=st.dictionaries(st.text(), json_values, max_size=3))
results = st.builds(
    ToolResult,
    name=st.text(),
    outcome=st.sampled_from(ToolOutcome),
    text=st.text(st.characters()),
    seconds=st.floats(0, 1e6),
)


schemas = st.dictionaries(st.text(), json_values, max_size=3)


@st.composite
def turns(draw, *, needs_context):
    sampled = draw(st.lists(token_ids, min_size=1, max_size=5))
    is_sampled = draw(st.booleans())
    return Turn(
        context_ids=tuple(draw(st.lists(token_ids, min_size=int(needs_context), max_size=5))),
        sampled_ids=tuple(sampled),
        sampled_log_probs=tuple(draw(log_probs) for _ in sampled) if is_sampled else (),
        calls=tuple(draw(st.lists(calls, max_size=2))),
        results=tuple(draw(st.lists(results, max_size=2))),
        reward=draw(st.floats(allow_nan=False)),
        stop_reason=draw(st.sampled_from(StopReason)),
        policy_version=draw(st.integers(0, 100)),
        is_trained=draw(st.booleans()),
        drift=draw(st.none() | st.sampled_from(Drift)),
        messages=tuple(draw(st.lists(schemas, max_size=2))),
    )


@st.composite
def trajectories(draw):
    num_turns = draw(st.integers(1, 5))
    segments = (0, *(index for index in range(1, num_turns) if draw(st.booleans())))
    return Trajectory(
        task_id=draw(st.text()),
        turns=tuple(draw(turns(needs_context=index in segments)) for index in range(num_turns)),
        group_id=draw(st.integers(0, 9)),
        reward=draw(st.floats(allow_nan=False)),
        is_success=draw(st.booleans()),
        end_reason=draw(st.sampled_from(EndReason)),
        segments=segments,
        tools=draw(st.none() | st.lists(schemas, max_size=2).map(tuple)),
    )
