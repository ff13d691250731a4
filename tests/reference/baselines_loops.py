"""The training-free models, one user and one pair of items at a time, on Python lists and dictionaries.

A catalogue is ``V`` items, 0 is padding; a history is a list of items, oldest first.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import pairwise

import numpy as np

Vector = dict[str, float]


def popularity(train: Sequence[Sequence[int]], n_items: int) -> list[int]:
    """How often each item occurs."""
    return [sum(history.count(item) for history in train) for item in range(n_items)]


def followers(train: Sequence[Sequence[int]]) -> dict[int, Counter[int]]:
    """Item -> how often each item comes right after it."""
    counts: dict[int, Counter[int]] = {}
    for history in train:
        for before, after in pairwise(history):
            counts.setdefault(before, Counter())[after] += 1
    return counts


def ties(counts: Sequence[int]) -> list[float]:
    """count / largest count * 1e-6."""
    most = max(counts)
    return [count / most * 1e-6 for count in counts]


def markov(
    history: Sequence[int], counts: dict[int, Counter[int]], decay: float, newest: int, added: Sequence[float]
) -> list[float]:
    """sum_j decay^j P(item | j-th last item), plus what is added for ties."""
    scores = list(added)
    for j, item in enumerate(reversed(history[-newest:])):
        following = counts.get(item, Counter())
        for after, count in following.items():
            scores[after] += decay**j * count / sum(following.values())
    return scores


def linear_transitions(
    train: Sequence[Sequence[int]], n_items: int, newest: int, decay: float, ridge: float
) -> list[list[float]]:
    """The weights that least squares finds, with sqrt(ridge) times one weight = 0 as further equations."""
    histories: list[list[float]] = []
    following: list[list[float]] = []
    for items in train:
        for end in range(1, len(items)):
            row = [0.0] * n_items
            for j, item in enumerate(reversed(items[max(0, end - newest) : end])):
                row[item] += decay**j
            histories.append(row)
            following.append([float(item == items[end]) for item in range(n_items)])
    for item in range(n_items):
        histories.append([math.sqrt(ridge) * (item == other) for other in range(n_items)])
        following.append([0.0] * n_items)
    weights: list[list[float]] = np.linalg.lstsq(np.array(histories), np.array(following))[0].tolist()
    return weights


def slit(
    history: Sequence[int], weights: Sequence[Sequence[float]], decay: float, newest: int, added: Sequence[float]
) -> list[float]:
    """sum_j decay^j weight of the item after the j-th last item, plus what is added for ties."""
    scores = list(added)
    for j, item in enumerate(reversed(history[-newest:])):
        for candidate in range(len(scores)):
            scores[candidate] += decay**j * weights[item][candidate]
    return scores


def cosine(a: Vector, b: Vector) -> float:
    """0 where one of the vectors is zero."""
    lengths = math.sqrt(sum(x * x for x in a.values())) * math.sqrt(sum(x * x for x in b.values()))
    return sum(x * b.get(word, 0.0) for word, x in a.items()) / lengths if lengths else 0.0


def text_knn(
    history: Sequence[int], texts: Sequence[Vector], decay: float, newest: int, added: Sequence[float]
) -> list[float]:
    """sum_j decay^j cosine(text of the item, text of the j-th last item), plus what is added for ties."""
    scores = list(added)
    for j, item in enumerate(reversed(history[-newest:])):
        for candidate in range(1, len(texts)):
            scores[candidate] += decay**j * cosine(texts[candidate], texts[item])
    return scores


def hybrid(markov_scores: Sequence[float], text_scores: Sequence[float], text_weight: float) -> list[float]:
    """Both over their largest, the text's times its weight; where no score is above the ties, as it is."""
    most, most_text = (max(scores) + 1e-9 if max(scores) > 1e-6 else 1 for scores in (markov_scores, text_scores))
    return [a / most + text_weight * b / most_text for a, b in zip(markov_scores, text_scores, strict=True)]


def tfidf(texts: Sequence[str], stop_words: Collection[str]) -> list[Vector]:
    """(1 + ln tf) (1 + ln((1 + n) / (1 + df))) of words and word pairs that two texts or more hold.

    Words have two characters or more; stop words go before pairs are made. The vectors are not scaled.
    """
    bags = []
    for text in texts:
        words = [word for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in stop_words]
        bags.append(Counter(words + [f"{a} {b}" for a, b in pairwise(words)]))
    frequency = Counter(word for bag in bags for word in bag)
    n = len(texts)
    return [
        {
            word: (1 + math.log(count)) * (1 + math.log((1 + n) / (1 + frequency[word])))
            for word, count in bag.items()
            if frequency[word] >= 2
        }
        for bag in bags
    ]
