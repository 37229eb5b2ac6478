"""Environments as users of TRL and of Gymnasium write them; nothing in here knows this project."""

from __future__ import annotations

import random
import string

import gymnasium
from gymnasium.spaces import Discrete, Text

WORDS = ("tulip", "otter", "maple")
LETTERS = Text(min_length=0, max_length=200, charset=string.printable)


class GuessTheWord:
    """In the form of TRL's `environment_factory`: tools are the public methods."""

    made = 0

    def __init__(self):
        type(self).made += 1
        self.reward = 0.0

    def reset(self, **kwargs) -> str | None:
        self.kwargs = kwargs
        self.word = kwargs["word"]
        self.reward = 0.0
        return f" It has {len(self.word)} letters."

    def hint(self, position: int) -> str:
        """
        Reveal one letter of the word.

        Args:
            position: Position of the letter, from 1.

        Returns:
            The letter.
        """
        self.reward -= 0.1
        return self.word[position - 1]

    def guess(self, word: str) -> str:
        """
        Guess the word.

        Args:
            word: The guess.

        Returns:
            Whether it is right.
        """
        if self.reward >= 0.5:
            raise ValueError("Game over.")
        self.reward += 1.0 if word == self.word else 0.0
        return "right" if word == self.word else "wrong"

    def _secret(self) -> str:
        return self.word


class Echo:
    """It owns its reward, which is asked for with an awaited call, and says nothing at the start."""

    def reset(self, **kwargs) -> None:
        self.said = []

    async def echo(self, message: str) -> str:
        """
        Say it back.

        Args:
            message: What to say.
        """
        self.said.append(message)
        return message

    async def get_reward(self) -> float | None:
        return len(self.said[-1]) / 10 if self.said else None


class NoReward:
    def reset(self, **kwargs):
        return None


class NoReset:
    reward = 0.0


class Picture:
    reward = 0.0

    def reset(self, **kwargs):
        return [{"type": "image"}]


class Strict:
    reward = 0.0

    def reset(self, word):
        return None


class GuessEnv(gymnasium.Env):
    """A Gymnasium environment of text."""

    observation_space = LETTERS
    action_space = LETTERS

    def __init__(self):
        self.is_closed = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        choices = (options or {}).get("words", WORDS)
        self.word = choices[random.Random(seed).randrange(len(choices))]
        self.left = 3
        return f"Guess a word of {len(self.word)} letters.", {"admissible_actions": sorted(choices)}

    def step(self, action):
        self.left -= 1
        is_right = action == self.word
        text = "Right." if is_right else f"Wrong, {self.left} left."
        return text, 1.0 if is_right else -0.25, is_right, self.left == 0, {}

    def close(self):
        self.is_closed = True


class NumberEnv(GuessEnv):
    action_space = Discrete(3)


class BytesEnv(GuessEnv):
    def reset(self, *, seed=None, options=None):
        return b"bytes", {}
