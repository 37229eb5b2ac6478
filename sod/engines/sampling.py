"""Draws one token per row, so that a row's draws depend on nothing but the seed and the row."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 256


class RowRandom:
    """One stream of uniform numbers per row.

    A row draws from its own stream, so its samples do not depend on which rows share its batch.
    """

    def __init__(self, seed: int) -> None:
        """Begin the streams of one rollout.

        Args:
            seed: Any integer.
        """
        self._seed = seed
        self._generators: dict[int, torch.Generator] = {}
        self._blocks: dict[int, list[float]] = {}

    def draw(self, row: int) -> float:
        """Take the next number of a row's stream.

        Args:
            row: Row of the rollout.

        Returns:
            A number in [0, 1).
        """
        block = self._blocks.get(row)
        if not block:
            generator = self._generators.get(row)
            if generator is None:
                generator = torch.Generator().manual_seed(mix_seed(self._seed, row))
                self._generators[row] = generator
            block = torch.rand(_BLOCK, generator=generator, dtype=torch.float64).tolist()
            block.reverse()
            self._blocks[row] = block
        return block.pop()


def mix_seed(seed: int, stream: int) -> int:
    """Derive an unrelated seed for a numbered stream.

    Args:
        seed: Any integer.
        stream: Which stream of the seed.

    Returns:
        A seed of 63 bits.

    Source:
        The finaliser of splitmix64 over an odd-multiplier combination of both numbers.
    """
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1342543DE82EF95 + 0x2545F4914F6CDD1D) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return (state ^ (state >> 31)) >> 1


def sample(
    logits: Tensor, uniforms: Tensor | None, *, temperature: float, top_p: float
) -> tuple[Tensor, Tensor]:
    """Choose one token per row.

    Args:
        logits: (B, V) in any float dtype.
        uniforms: (B,) float64 in [0, 1) on the device of the logits; not read at temperature 0.
        temperature: 0 takes the most likely token.
        top_p: Smallest mass that is sampled from.

    Returns:
        Token ids (B,) int64 and log-probabilities (B,) float32: of the softmax at the temperature before
        the top_p cut, at temperature 0 of the plain softmax.

    Raises:
        ValueError: There are no uniforms at a temperature above 0.
    """
    scores = logits.float()
    if temperature == 0.0:
        log_probs = scores.log_softmax(dim=-1)
        tokens = log_probs.argmax(dim=-1)
    else:
        log_probs = (scores / temperature).log_softmax(dim=-1)
        if uniforms is None:
            raise ValueError("sample: uniforms are needed at a temperature above 0.")
        tokens = _invert_cdf(log_probs.exp(), uniforms, top_p)
    return tokens, log_probs.gather(-1, tokens[:, None])[:, 0]


def _invert_cdf(probs: Tensor, uniforms: Tensor, top_p: float) -> Tensor:
    order = None
    if top_p < 1.0:
        # A stable sort keeps equal probabilities in id order, on every device.
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        mass_before = probs.cumsum(dim=-1, dtype=torch.float64) - probs
        probs = probs.masked_fill(mass_before >= top_p, 0.0)
    # float64: in float32 the sum over a vocabulary of 150,000 would lose the rare tokens.
    cdf = probs.cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1:]
    # Strictly below the total, so that the token found always has a probability above zero.
    threshold = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    # The bound matters for logits that are not finite: the caller then sees that in the log-probability.
    index = torch.searchsorted(cdf, threshold, right=True).clamp(max=cdf.shape[-1] - 1)
    return (index if order is None else order.gather(-1, index))[:, 0]
