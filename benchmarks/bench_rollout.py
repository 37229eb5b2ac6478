"""Tokens per second of multi-turn rollouts: our lockstep engine beside `generate`, called once per turn.

Both roll the same model out greedily over the same observations. The peer is what a loop over
`transformers.generate` does: it pads all conversations that still run, lets `generate` answer each of them
until the last has ended its turn, appends the observations, and reads everything again for the next turn.
Ours reads every token once, and lets a row go on to its next turn while others still sample.

Nothing is timed before both have produced the same tokens. Times alternate between the two, so that a busy
machine hurts both alike. The peer is not asked for log-probabilities, which ours always gives.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.record import provenance
from sod.engines.base import Generation, SamplingParams
from sod.engines.hf import HFEngine
from sod.models import build_qwen3

PAD, STOP = 0, 1
PROFILES = {
    # name: (vocabulary, width, layers, heads)
    "tiny": (512, 64, 2, 4),
    "small": (4096, 256, 4, 4),
    "base": (16384, 512, 8, 8),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What is rolled out.

    Attributes:
        profile: Size of the model.
        rows: Conversations at the same time.
        turns: Turns of each.
        prompt: Mean tokens of a prompt; from half of it to one and a half.
        observation: Mean tokens of an observation, as spread.
        turn: Most tokens of a turn.
        mean_turn: Tokens after which a turn ends on average; as with a die, so lengths vary as an agent's do.
        seed: Of weights, prompts and observations.
    """

    profile: str = "small"
    rows: int = 16
    turns: int = 6
    prompt: int = 128
    observation: int = 48
    turn: int = 96
    mean_turn: int = 32
    seed: int = 0


class Conversations:
    """Prompts and observations, and the tokens of every row so far."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self.stop_ids = (STOP,)
        self.rows = [self._draw(row, 0, shape.prompt) for row in range(shape.rows)]
        self.prompts = [tuple(row) for row in self.rows]
        self.num_turns = [0] * shape.rows
        self.num_sampled = 0

    def answer(self, row: int, sampled: Sequence[int]) -> tuple[int, ...] | None:
        """Take a turn and give the observation, or None after the last turn."""
        self.rows[row] += sampled
        self.num_sampled += len(sampled)
        self.num_turns[row] += 1
        if self.num_turns[row] == self._shape.turns:
            return None
        ids = self._draw(row, self.num_turns[row], self._shape.observation)
        self.rows[row] += ids
        return tuple(ids)

    def _draw(self, row: int, turn: int, mean: int) -> list[int]:
        rng = random.Random(hash((self._shape.seed, row, turn)))
        vocab = PROFILES[self._shape.profile][0]
        return [rng.randrange(STOP + 1, vocab) for _ in range(rng.randrange(mean // 2, mean + mean // 2 + 1))]


def make_model(shape: Shape) -> Any:
    """Build the model, with weights large enough that its choices are clear."""
    vocab, width, layers, heads = PROFILES[shape.profile]
    longest = (shape.prompt + shape.turns * (shape.turn + shape.observation)) * 2
    model: Any = build_qwen3(
        vocab_size=vocab,
        hidden_size=width,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=3 * width,
        max_positions=longest,
        seed=shape.seed,
        pad_id=PAD,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(3.0)

    def end_turns(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        """A random model would never end a turn, or always at the same place: let token and position say."""
        die = (7919 * kwargs["input_ids"][:, -1] + 104729 * kwargs["position_ids"][:, -1]) % 1009
        output.logits[:, -1, STOP] = torch.where(die * shape.mean_turn < 1009, 1e4, -1e4)
        return output

    model.register_forward_hook(end_turns, with_kwargs=True)
    return model.eval()


def lockstep(model: Any, shape: Shape) -> Conversations:
    """Roll out with our engine."""
    talk = Conversations(shape)

    def respond(ended: Sequence[tuple[int, Generation]]) -> list[tuple[int, ...] | None]:
        return [talk.answer(row, generation.sampled_ids) for row, generation in ended]

    params = SamplingParams(temperature=0.0, max_turn_tokens=shape.turn, stop_ids=talk.stop_ids)
    HFEngine(model, pad_id=PAD).rollout(talk.prompts, respond, params, seed=0)
    return talk


@torch.inference_mode()
def generate_per_turn(model: Any, shape: Shape) -> Conversations:
    """Roll out with `generate`: every turn pads and reads all that came before."""
    talk = Conversations(shape)
    running = list(range(shape.rows))
    while running:
        width = max(len(talk.rows[row]) for row in running)
        ids = torch.full((len(running), width), PAD)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(running):
            ids[place, width - len(talk.rows[row]) :] = torch.tensor(talk.rows[row])
            mask[place, width - len(talk.rows[row]) :] = 1
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=shape.turn,
            do_sample=False,
            eos_token_id=list(talk.stop_ids),
            pad_token_id=PAD,
        )[:, width:].tolist()
        running = [
            row
            for row, sampled in zip(running, made, strict=True)
            if talk.answer(row, _turn(sampled, talk.stop_ids)) is not None
        ]
    return talk


def _turn(sampled: Sequence[int], stop_ids: Sequence[int]) -> Sequence[int]:
    end = next((index for index, token in enumerate(sampled) if token in stop_ids), len(sampled) - 1)
    return sampled[: end + 1]


def measure(shape: Shape, repeats: int) -> dict[str, Any]:
    """Compare the tokens of both, then time them by turns.

    Args:
        shape: What to roll out.
        repeats: Timed rollouts of each.

    Returns:
        One row: shape, tokens, median seconds and tokens per second of each, and their ratio.

    Raises:
        ValueError: The two did not produce the same tokens.
    """
    model = make_model(shape)
    ours, peer = lockstep(model, shape), generate_per_turn(model, shape)
    differing = [row for row in range(shape.rows) if ours.rows[row] != peer.rows[row]]
    if differing:
        raise ValueError(f"bench_rollout: rows {differing} differ between the two; there is nothing to time.")
    contestants: dict[str, Callable[[Any, Shape], Conversations]] = {
        "lockstep": lockstep,
        "generate_per_turn": generate_per_turn,
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            started = time.perf_counter()
            run(model, shape)
            times[name].append(time.perf_counter() - started)
    result: dict[str, Any] = {**vars(shape), "sampled_tokens": ours.num_sampled}
    result["all_tokens"] = sum(len(row) for row in ours.rows)
    for name, seconds in times.items():
        result[f"{name}_s"] = statistics.median(seconds)
        result[f"{name}_all_s"] = seconds
        result[f"{name}_tokens_per_s"] = ours.num_sampled / statistics.median(seconds)
    result["ratio"] = statistics.median(
        slow / fast for slow, fast in zip(times["generate_per_turn"], times["lockstep"], strict=True)
    )
    return result


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows for people; a ratio above 1 is ours faster."""
    heads = (
        f"{'model':<7}{'rows':>5}{'turns':>6}{'tokens':>8}{'ours tok/s':>12}{'peer tok/s':>12}{'ratio':>7}"
    )
    lines = [heads]
    for row in rows:
        ours, peer = row["lockstep_tokens_per_s"], row["generate_per_turn_tokens_per_s"]
        lines.append(
            f"{row['profile']:<7}{row['rows']:>5}{row['turns']:>6}{row['sampled_tokens']:>8}"
            f"{ours:>12.0f}{peer:>12.0f}{row['ratio']:>7.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the table, print it, and keep it as JSON where a file is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profiles", nargs="+", choices=sorted(PROFILES), default=["tiny", "small"])
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32], help="conversations at a time")
    parser.add_argument("--turns", type=int, default=6, help="turns of each conversation")
    parser.add_argument("--repeats", type=int, default=3, help="timed rollouts of each")
    parser.add_argument("--threads", type=int, help="CPU threads of torch; left as they are by default")
    parser.add_argument("--output", type=Path, help="file for the record")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [
        measure(Shape(profile=profile, rows=num_rows, turns=options.turns), options.repeats)
        for profile in options.profiles
        for num_rows in options.rows
    ]
    print(table(rows))
    if options.output:
        origin = provenance("cpu", "cpu", {"transformers": transformers.__version__})
        options.output.write_text(json.dumps({**origin, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
