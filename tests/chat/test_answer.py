"""The answer engine and the knowledge base that ships with it."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat.answer import (
    DEFAULT,
    KNOWLEDGE,
    RECALL,
    Context,
    Entry,
    KnowledgeBase,
    Language,
    language,
    terms,
)
from chat.record import Message, Origin

BASE = KnowledgeBase.load()
OTHER = KnowledgeBase.load()
QUESTIONS = [(q, entry["id"]) for entry in orjson.loads(KNOWLEDGE.read_bytes()) for q in entry["questions"]]


@pytest.mark.parametrize(("question", "id"), QUESTIONS)
def test_every_question_finds_its_own_entry(question: str, id: str) -> None:
    found = BASE.best(question)
    assert found is not None
    assert found.id == id


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("Hi! Could you tell me where my order is, please?", "order-status"),
        ("REFUND", "refund"),
        ("I'd like to pay with my credit card", "payment"),
        ("请问一下你们这边运费是怎么算的呀", "shipping-fee"),
        ("我昨天买的杯子收到就破损了", "damaged"),
        ("我想申请 refund", "refund"),
        ("The weather is lovely today", None),
        ("今天天气真好", None),
        ("???", None),
        ("😀", None),
    ],
)
async def test_what_people_write_is_understood_or_not_pretended_to_be(text: str, id: str | None) -> None:
    answer = await BASE.answer(text, Context("s"))
    assert answer.entry == id
    assert answer.fitting is (id is not None)


async def test_the_answer_is_in_the_language_of_the_question() -> None:
    assert "退款" in (await BASE.answer("退款多久", Context("s"))).text
    assert "refund" in (await BASE.answer("refund time", Context("s"))).text
    assert (await BASE.answer("量子力学", Context("s"))).text == DEFAULT[Language.ZH]
    assert (await BASE.answer("quantum mechanics", Context("s"))).text == DEFAULT[Language.EN]


async def test_a_short_follow_up_is_read_with_what_was_said_before() -> None:
    base = KnowledgeBase(
        [
            Entry("price", ("price of the red lamp",), (), {Language.EN: "10", Language.ZH: "十"}),
            Entry("size", ("size of the red lamp",), (), {Language.EN: "big", Language.ZH: "大"}),
            Entry("other", ("something else entirely here",), (), {Language.EN: "-", Language.ZH: "-"}),
        ]
    )
    before = Message("s", 1, Origin.USER, "price of the red lamp", 0.0)
    short = "how about lamps nowadays, roughly"
    assert (await base.answer(short, Context("s"))).entry is None
    assert (await base.answer(short, Context("s", (before,)))).entry == "price"
    assert (await base.answer("jokes", Context("s", (before,)))).entry is None


@given(st.text(max_size=200))
def test_recall_is_bounded_and_answers_do_not_depend_on_the_run(text: str) -> None:
    asked = terms(text)
    assert len(BASE.recall(asked)) <= RECALL
    assert BASE.best(text) == OTHER.best(text)
    assert language(text) in Language


def test_a_wrong_knowledge_base_is_refused_with_the_entry(tmp_path: Path) -> None:
    file = tmp_path / "kb.json"
    file.write_bytes(orjson.dumps([{"id": "a", "questions": [], "keywords": [], "answers": {"en": "x"}}]))
    with pytest.raises(ValueError, match="entry 0 lacks"):
        KnowledgeBase.load(file)
    one = {"id": "a", "questions": [], "keywords": [], "answers": {"en": "x", "zh": "y"}}
    file.write_bytes(orjson.dumps([one, one]))
    with pytest.raises(ValueError, match="same id"):
        KnowledgeBase.load(file)
