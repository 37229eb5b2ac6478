"""How well a short answer fits the accepted ones, by the usual rules of open-domain question answering."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """Bring an answer into the form that is compared.

    Args:
        answer: Any text.

    Returns:
        Lower case, without ASCII punctuation and English articles, one space between words.

    Source:
        The evaluation of SQuAD 1.1, which NQ, TriviaQA, HotpotQA and their kin took over.
    """
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, accepted: Sequence[str]) -> float:
    """Score equality with any accepted answer, both normalised.

    Args:
        answer: What was given.
        accepted: At least one accepted answer.

    Returns:
        1.0 or 0.0.
    """
    return float(normalised(answer) in {normalised(one) for one in accepted})


def token_f1(answer: str, accepted: Sequence[str]) -> float:
    """Score the words shared with the nearest accepted answer.

    F1 = 2 p r / (p + r), p and r the shares of the answer's and of the accepted answer's words that both
    have, counted with repetition; 1 where both have no words at all.

    Args:
        answer: What was given.
        accepted: At least one accepted answer.

    Returns:
        The best F1, in [0, 1].
    """
    return max(_f1(normalised(answer).split(), normalised(one).split()) for one in accepted)


def _f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    shared = (Counter(given) & Counter(wanted)).total()
    return 2.0 * shared / (len(given) + len(wanted))
