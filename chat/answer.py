"""The answer engine: what to say to a user's text, out of a knowledge base in Chinese and English.

Two steps, as in any search: *recall* takes the five entries that share the rarest terms with the text from an
inverted index; *re-ranking* compares the text with each way those entries can be asked. Deterministic, and
without I/O after loading.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import orjson

from chat.record import Message, Origin

RECALL = 5
"""Entries that are re-ranked."""
THRESHOLD = 0.34
"""Re-ranking score from which an entry is believed to fit; 1 is asked word for word."""

FOLLOW_UP = 4
"""A text of so few terms may be the continuation of the one before it."""

KNOWLEDGE = Path(__file__).with_name("knowledge.json")
"""The knowledge base that ships with the package."""


class Language(StrEnum):
    """Languages the engine speaks."""

    ZH = "zh"
    EN = "en"


DEFAULT: Mapping[Language, str] = {
    Language.ZH: "抱歉，这个问题我暂时没有找到答案。您可以换一种说法，或者点击“人工客服”转接人工。",
    Language.EN: "Sorry, I have no answer to that yet. Please put it differently, or ask for a human agent.",
}
"""Said when nothing in the knowledge base fits."""

FAILED: Mapping[Language, str] = {
    Language.ZH: "抱歉，系统暂时无法回答。请稍后再试，或者点击“人工客服”转接人工。",
    Language.EN: "Sorry, I cannot answer right now. Please try again later, or ask for a human agent.",
}
"""Said when the engine itself fails."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say. `fitting` is False for a default reply. `entry` names where it came from."""

    text: str
    fitting: bool = True
    entry: str | None = None


@dataclass(frozen=True, slots=True)
class Context:
    """What an engine may know besides the text: the session's id and its recent messages, oldest first."""

    session: str
    history: tuple[Message, ...] = ()


class Engine(Protocol):
    """Anything that can answer. May raise or take long; the caller limits time and handles failure."""

    async def answer(self, text: str, context: Context) -> Answer:
        """The answer to `text`, in the language of `text`."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing the knowledge base knows: ways to ask for it, words that point to it, answers by language.

    A `courtesy` (a greeting, thanks) is answered only when nothing else was meant.
    """

    id: str
    questions: tuple[str, ...]
    keywords: tuple[str, ...]
    answers: Mapping[Language, str]
    courtesy: bool = False


_HAN = re.compile(r"[㐀-䶿一-鿿]")
_RUN = re.compile(r"[㐀-䶿一-鿿]+|[a-z0-9]+")
_STOP_ENGLISH = (
    "a an and are at be can could do does for from have has how i in is it me my of on or please should the"
    " there this to want was what when where which will with would you your about d m s ve re ll"
)
_STOP = frozenset(_STOP_ENGLISH.split()) | frozenset("的了吗呢啊吧请问我你您是在有怎么什能可以要想")
# Pairs that only frame a question; they would recall every entry.
_FRAMES = "怎么 什么 如何 可以 请问 么样 能不 不能 我想 我要 你们 我的 是不 不是 是否"
_STOP_PAIRS = frozenset(_FRAMES.split())
_SUFFIXES = ("ing", "ies", "es", "ed", "s")


def language(text: str) -> Language:
    """Chinese as soon as there is one Chinese character: people mix English words in, not the reverse."""
    return Language.ZH if _HAN.search(text) else Language.EN


def terms(text: str) -> list[str]:
    """The terms of a text: stems of English words; single Chinese characters and pairs of neighbours."""
    found: list[str] = []
    for run in _RUN.findall(text.lower()):
        if _HAN.match(run):
            found += [c for c in run if c not in _STOP]
            found += [p for p in map("".join, pairwise(run)) if p not in _STOP_PAIRS]
        elif run not in _STOP:
            found.append(_stem(run))
    return found


def _stem(word: str) -> str:
    for suffix in _SUFFIXES:
        if word.endswith(suffix) and len(word) - len(suffix) >= 3:
            return word.removesuffix(suffix) + ("y" if suffix == "ies" else "")
    return word


class KnowledgeBase:
    """Entries, and an inverted index over their questions and keywords. Implements `Engine`."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = {entry.id: entry for entry in entries}
        self._index: dict[str, set[str]] = defaultdict(set)
        self._questions: dict[str, list[Counter[str]]] = {}
        self._keywords: dict[str, list[frozenset[str]]] = {}
        for entry in entries:
            self._questions[entry.id] = [Counter(terms(question)) for question in entry.questions]
            self._keywords[entry.id] = [frozenset(terms(keyword)) for keyword in entry.keywords]
            for source in (*entry.questions, *entry.keywords):
                for term in terms(source):
                    self._index[term].add(entry.id)

    @classmethod
    def load(cls, path: Path = KNOWLEDGE) -> KnowledgeBase:
        """Reads a JSON list of `{id, questions, keywords, answers: {zh, en}, courtesy?}`.

        Raises `OSError`, or `ValueError` that says which entry is wrong.
        """
        raw = orjson.loads(path.read_bytes())
        entries: list[Entry] = []
        for number, fields in enumerate(raw):
            try:
                entries.append(
                    Entry(
                        fields["id"],
                        tuple(fields["questions"]),
                        tuple(fields["keywords"]),
                        {each: fields["answers"][each] for each in Language},
                        fields.get("courtesy", False),
                    )
                )
            except (KeyError, TypeError) as error:
                raise ValueError(f"{path.name}: entry {number} lacks {error}") from None
        if len({entry.id for entry in entries}) != len(entries):
            raise ValueError(f"{path.name}: two entries have the same id")
        return cls(entries)

    async def answer(self, text: str, context: Context) -> Answer:
        """The best entry's answer; a short follow-up is understood together with what was said before it."""
        found = self.best(text) or self._follow_up(text, context)
        spoken = language(text)
        if found is None:
            return Answer(DEFAULT[spoken], fitting=False)
        return Answer(found.answers[spoken], entry=found.id)

    def _follow_up(self, text: str, context: Context) -> Entry | None:
        asked = terms(text)
        before = [message.text for message in context.history if message.origin is Origin.USER]
        if not before or len(asked) > FOLLOW_UP:
            return None
        found = self.best(f"{before[-1]} {text}")
        # The text itself must point there, or any stray remark would repeat the last answer.
        return found if found is not None and found.id in self.recall(asked) else None

    def best(self, text: str) -> Entry | None:
        """The entry that fits best, if any fits well enough."""
        asked = Counter(terms(text))
        scores = {id: self._score(asked, id) for id in self.recall(asked)}
        fitting = [self._entries[id] for id, score in scores.items() if score >= THRESHOLD]
        return min(fitting, key=lambda entry: (entry.courtesy, -scores[entry.id], entry.id), default=None)

    def recall(self, asked: Iterable[str]) -> list[str]:
        """Ids of the `RECALL` entries with the greatest total weight of shared terms, best first."""
        weights: dict[str, float] = defaultdict(float)
        for term in set(asked):
            for id in self._index.get(term, ()):
                weights[id] += self._weight(term)
        return sorted(weights, key=lambda id: (-weights[id], id))[:RECALL]

    def _weight(self, term: str) -> float:
        # Inverse document frequency, smoothed; a term nobody knows counts as the rarest.
        return math.log(1 + len(self._entries) / max(1, len(self._index.get(term, ()))))

    def _score(self, asked: Counter[str], id: str) -> float:
        wording = max((self._similarity(asked, question) for question in self._questions[id]), default=0.0)
        pointed = sum(keyword <= asked.keys() for keyword in self._keywords[id] if keyword)
        # A keyword alone reaches the threshold, further ones add less and less.
        return wording + (0.35 * (2 - 0.5 ** (pointed - 1)) if pointed else 0.0)

    def _similarity(self, one: Counter[str], other: Counter[str]) -> float:
        shared = sum(self._weight(term) * count for term, count in (one & other).items())
        total = sum(self._weight(term) * count for term, count in (one + other).items())
        return 2 * shared / total if total else 0.0
