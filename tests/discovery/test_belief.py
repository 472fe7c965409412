"""The guards, the merging and the waits: pure, with time as an argument."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.registries import Guard
from discovery.belief import Backoff, Belief, Instances, Merge
from discovery.model import Instance, Status, Update

GUARD = Guard(share=0.5, hold=30, repeat=5, flaps=3, calm=20)


def make(names: str, status: Status = Status.UP) -> tuple[Instance, ...]:
    return tuple(Instance("chat", name, "10.0.0.1", 9000 + ord(name), status=status) for name in names)


def names(instances: Instances) -> str | None:
    return None if instances is None else "".join(instance.id for instance in instances)


def believing(instances: Instances) -> Belief:
    belief = Belief(GUARD)
    belief.answer(instances, 0)
    return belief


def test_absent_empty_and_full_are_three_different_beliefs() -> None:
    assert believing(None).believed is None
    assert believing(()).believed == ()
    assert names(believing(make("ab")).believed) == "ab"


@pytest.mark.parametrize(("before", "after"), [("a", ""), ("ab", "a"), ("abc", "bc"), ("abcd", "abc")])
def test_a_single_deregistration_is_never_held_back(before: str, after: str) -> None:
    belief = believing(make(before))
    assert belief.answer(make(after), 1) == ()
    assert names(belief.believed) == after


def test_nobody_is_gone_because_a_registry_that_started_over_does_not_know_them_yet() -> None:
    belief = believing(make("abc"))
    assert names(belief.answer(make("ab"), 1, partial=True)) == "c"
    assert names(belief.believed) == "abc"
    assert belief.answer(make("ab"), 2) == ()
    assert names(belief.believed) == "abc"
    assert belief.answer(make("a"), 3) == ()
    assert names(belief.believed) == "ac"
    belief.answer(make("a"), 8.5)
    assert names(belief.believed) == "a"


def test_half_may_leave_at_once_and_more_may_not() -> None:
    belief = believing(make("abcd"))
    assert belief.answer(make("cd"), 1) == ()
    belief = believing(make("abcde"))
    assert names(belief.answer(make("de"), 1)) == "abc"
    assert names(belief.believed) == "abcde"


def test_an_empty_answer_holds_everybody_and_asks_everybody() -> None:
    belief = believing(make("abc"))
    assert names(belief.answer((), 1)) == "abc"
    assert names(belief.believed) == "abc"
    assert belief.suspects == 3


def test_a_registry_that_forgot_the_service_is_doubted_even_for_one_instance() -> None:
    belief = believing(make("a"))
    assert names(belief.answer(None, 1)) == "a"
    assert names(belief.believed) == "a"


def test_a_suspect_that_is_not_ready_leaves_in_that_moment_and_the_others_stay() -> None:
    belief = believing(make("abc"))
    a, b, _ = belief.answer((), 1)
    assert belief.verdict(a, ready=False)
    assert not belief.verdict(b, ready=True)
    assert names(belief.believed) == "bc"


def test_a_verdict_on_somebody_who_is_no_suspect_changes_nothing() -> None:
    belief = believing(make("abc"))
    (a, *_) = belief.answer((), 1)
    belief.answer(make("abc"), 2)
    assert not belief.verdict(a, ready=False)
    assert names(belief.believed) == "abc"


def test_instances_that_come_back_are_no_suspects_any_more() -> None:
    belief = believing(make("abc"))
    belief.answer(None, 1)
    assert belief.answer(make("a"), 2) == ()
    assert (names(belief.believed), belief.suspects) == ("abc", 2)
    belief.answer(make("ab"), 3)
    belief.answer(make("abc"), 4)
    assert (names(belief.believed), belief.suspects) == ("abc", 0)


def test_instances_that_register_again_one_by_one_do_not_confirm_the_loss_of_the_others() -> None:
    belief = believing(make("abcdef"))
    for at, back in enumerate(["", "a", "ab", "abc", "abcd", "abcde"]):
        belief.answer(make(back), 10.0 * at / 4)
        assert names(belief.believed) == "abcdef"


def test_the_registry_that_repeats_itself_later_is_believed() -> None:
    belief = believing(make("abc"))
    belief.answer((), 1)
    belief.answer((), 5.9)
    assert names(belief.believed) == "abc"
    belief.answer((), 6)
    assert names(belief.believed) == ""


def test_a_suspect_leaves_when_it_was_held_long_enough() -> None:
    belief = believing(make("abc"))
    belief.answer((), 1)
    assert belief.deadline == 31
    assert not belief.expire(30.9)
    assert belief.expire(31)
    assert (names(belief.believed), belief.deadline) == ("", None)


def test_a_single_loss_while_others_are_suspects_is_believed_at_once() -> None:
    belief = believing(make("abcdefg"))
    belief.answer(make("efg"), 1)
    assert belief.answer(make("fg"), 2) == ()
    assert names(belief.believed) == "abcdfg"


def test_many_that_turn_critical_at_once_are_doubted_as_if_they_were_missing() -> None:
    belief = believing(make("abc"))
    assert names(belief.answer(make("abc", Status.DOWN), 1)) == "abc"
    assert belief.believed == make("abc", Status.DOUBTFUL)
    assert belief.known == make("abc")
    a, *_ = make("abc")
    belief.verdict(a, ready=False)
    assert [i.status for i in belief.believed or ()] == [Status.DOWN, Status.DOUBTFUL, Status.DOUBTFUL]


def test_one_that_turns_critical_is_believed_at_once() -> None:
    belief = believing(make("ab"))
    assert belief.answer((*make("a", Status.DOWN), *make("b")), 1) == ()
    assert [i.status for i in belief.believed or ()] == [Status.DOWN, Status.UP]


def test_those_that_announced_their_leaving_may_all_go_at_once() -> None:
    belief = believing(make("abc", Status.DRAINING))
    assert belief.answer((), 1) == ()
    assert belief.believed == ()


def test_draining_everybody_is_never_doubted() -> None:
    belief = believing(make("abc"))
    assert belief.answer(make("abc", Status.DRAINING), 1) == ()
    assert {i.status for i in belief.believed or ()} == {Status.DRAINING}


def test_without_a_hold_there_is_no_guard() -> None:
    belief = Belief(Guard(hold=0))
    belief.answer(make("abc"), 0)
    assert belief.answer(None, 1) == ()
    assert belief.believed is None


def test_what_was_remembered_yields_to_any_real_set() -> None:
    belief = Belief(GUARD)
    belief.remember(make("abc"))
    assert belief.answer(make("x"), 1) == ()
    assert names(belief.believed) == "x"


def test_what_was_remembered_is_kept_while_the_registry_knows_nothing() -> None:
    belief = Belief(GUARD)
    belief.remember(make("abc"))
    assert names(belief.answer(None, 1)) == "abc"
    assert names(belief.believed) == "abc"


def test_what_was_remembered_and_put_to_use_is_guarded_like_an_answer() -> None:
    belief = Belief(GUARD)
    belief.remember(make("abc"))
    assert belief.fall_back()
    assert not belief.fall_back()
    assert names(belief.answer(make("a"), 1)) == "bc"
    assert names(belief.believed) == "abc"


def test_a_memory_that_comes_after_an_answer_is_ignored() -> None:
    belief = believing(make("a"))
    belief.remember(make("xyz"))
    assert names(belief.believed) == "a"
    assert not belief.fall_back()


sets = st.none() | st.sets(st.sampled_from("abcdef")).map(lambda s: make("".join(sorted(s))))


@given(st.lists(st.tuples(sets, st.floats(0, 20)), max_size=12))
def test_nobody_who_is_listed_is_ever_missing_and_nobody_outstays_the_hold(
    answers: list[tuple[Instances, float]],
) -> None:
    belief, now, last_listed = Belief(GUARD), 0.0, dict[str, float]()
    for instances, wait in answers:
        now += wait
        belief.expire(now)
        for instance in belief._told or ():
            last_listed[instance.id] = now
        belief.answer(instances, now)
        believed = {instance.id for instance in belief.believed or ()}
        assert believed >= {instance.id for instance in instances or ()}
        for name in believed - {instance.id for instance in instances or ()}:
            assert now - last_listed[name] < GUARD.hold
        last_listed.update({instance.id: now for instance in instances or ()})


def put(merge: Merge, source: int, instances: Instances) -> Update | None:
    return merge.put(source, Update("chat", instances, 1.0))


def test_an_equal_set_is_silent() -> None:
    merge = Merge()
    assert put(merge, 0, make("ab")) is not None
    assert put(merge, 0, make("ab")) is None
    assert put(merge, 0, make("a")) is not None


def test_the_first_word_of_a_service_is_told_even_when_it_is_absent() -> None:
    merge = Merge()
    assert put(merge, 0, None) == Update("chat", None, 1.0)
    assert put(merge, 0, None) is None
    assert put(merge, 0, ()) == Update("chat", (), 1.0)


def test_registries_add_up_and_one_that_forgets_does_not_hurt_the_others() -> None:
    merge = Merge()
    put(merge, 0, make("ab"))
    update = put(merge, 1, make("c"))
    assert update is not None
    assert names(update.instances) == "abc"
    update = put(merge, 0, None)
    assert update is not None
    assert names(update.instances) == "c"


def test_where_two_tell_of_the_same_id_or_address_the_earlier_is_believed() -> None:
    merge = Merge()
    mine = Instance("chat", "a", "10.0.0.1", 80, weight=7)
    put(merge, 1, (Instance("chat", "a", "10.0.0.9", 80), Instance("chat", "z", "10.0.0.1", 80)))
    update = put(merge, 0, (mine,))
    assert update is not None
    assert update.instances == (mine,)


def test_a_forgotten_service_is_told_anew() -> None:
    merge = Merge()
    put(merge, 0, make("a"))
    merge.forget({"chat"})
    assert put(merge, 0, make("a")) is not None


def test_waits_double_up_to_the_most_and_half_of_each_is_chance() -> None:
    backoff, rng = Backoff(first=0.1, most=5.0), random.Random(1)
    for failures, whole in [(1, 0.1), (2, 0.2), (3, 0.4), (7, 5.0), (1000, 5.0)]:
        delays = [backoff.delay(failures, rng) for _ in range(200)]
        assert whole / 2 <= min(delays) < max(delays) <= whole
        assert max(delays) - min(delays) > whole / 4


def told(merge: Merge, source: int, instances: Instances) -> str | None:
    """What is published after a registry has told of the service; `=` when nothing is."""
    update = merge.put(source, Update("chat", instances, 0.0))
    return "=" if update is None else names(update.instances)


def test_what_an_earlier_process_knew_waits_for_the_registry_that_has_not_answered_yet() -> None:
    merge = Merge()
    merge.inherit("chat", make("abc"), range(2))
    assert told(merge, 0, ()) == "abc"
    assert told(merge, 0, make("x")) == "abcx"
    assert told(merge, 1, make("ab")) == "abx"


def test_an_inherited_instance_leaves_with_the_registry_that_has_told_of_it() -> None:
    merge = Merge()
    merge.inherit("chat", make("abc"), range(2))
    assert told(merge, 0, make("a")) == "abc"
    assert told(merge, 0, ()) == "bc"


def test_with_one_registry_its_first_answer_is_all_there_is() -> None:
    merge = Merge()
    merge.inherit("chat", make("abc"), range(1))
    assert told(merge, 0, make("b")) == "b"


def test_where_one_registry_is_not_sure_the_other_is_believed() -> None:
    merge = Merge()
    put(merge, 0, make("ab", Status.DOUBTFUL))
    merged = put(merge, 1, (Instance("chat", "a", "10.0.0.9", 1),))
    assert merged is not None
    assert [(i.id, i.host, i.status) for i in merged.instances or ()] == [
        ("a", "10.0.0.9", Status.UP),
        ("b", "10.0.0.1", Status.DOUBTFUL),
    ]


# -- who comes and goes -----------------------------------------------------------------------------------


def flap(belief: Belief, at: float, times: int, names: str = "ab", who: str = "a") -> float:
    """`who` goes and comes back so many times, a second each; the time after that."""
    for _ in range(times):
        belief.answer(make(names.replace(who, "")), at)
        belief.answer(make(names), at + 1)
        at += 2
    return at


def doubtful(belief: Belief) -> str:
    return "".join(i.id for i in belief.believed or () if i.status is Status.DOUBTFUL)


def test_one_that_came_and_went_thrice_is_last_choice_until_it_has_stayed() -> None:
    belief = believing(make("ab"))
    at = flap(belief, 100, 2)
    assert (doubtful(belief), belief.deadline) == ("", None)
    at = flap(belief, at, 1)
    assert (doubtful(belief), belief.flapping) == ("a", {"a"})
    assert names(belief.believed) == "ab"
    assert belief.deadline == at - 1 + 20
    assert not belief.expire(at - 1 + 19.9)
    assert belief.expire(at - 1 + 20)
    assert (doubtful(belief), belief.deadline) == ("", None)


def test_leaving_is_believed_at_once_however_often() -> None:
    belief = believing(make("ab"))
    at = flap(belief, 100, 5)
    assert belief.answer(make("b"), at) == ()
    assert names(belief.believed) == "b"


def test_one_that_turns_critical_again_and_again_flaps_too() -> None:
    belief = believing(make("ab"))
    for at in (100, 102, 104):
        belief.answer((*make("a", Status.DOWN), *make("b")), at)
        belief.answer(make("ab"), at + 1)
    assert doubtful(belief) == "a"


def test_restarts_that_are_far_apart_are_no_flapping() -> None:
    belief = believing(make("ab"))
    for at in range(0, 500, 50):
        flap(belief, at, 1)
        assert doubtful(belief) == ""


def test_one_that_announces_its_leaving_may_do_so_as_often_as_it_likes() -> None:
    belief = believing(make("ab"))
    for at in range(100, 110):
        belief.answer((*make("a", Status.DRAINING), *make("b")), at)
        belief.answer(make("b"), at + 0.3)
        belief.answer(make("ab"), at + 0.6)
    assert doubtful(belief) == ""


def test_a_registry_that_loses_and_finds_everybody_again_and_again_makes_nobody_flap() -> None:
    belief = believing(make("abc"))
    for at in range(100, 110):
        belief.answer((), at)
        belief.answer(make("abc"), at + 0.5)
    assert doubtful(belief) == ""


def test_no_limit_means_no_damping() -> None:
    belief = Belief(GUARD.model_copy(update={"flaps": 0}))
    belief.answer(make("ab"), 0)
    flap(belief, 1, 20)
    assert doubtful(belief) == ""


def test_who_stayed_away_for_long_begins_anew() -> None:
    belief = believing(make("ab"))
    at = flap(belief, 100, 2)
    belief.answer(make("b"), at)
    belief.answer(make("ab"), at + 100)
    assert doubtful(belief) == ""


def test_after_a_pause_of_the_process_every_deadline_begins_anew() -> None:
    belief = believing(make("abc"))
    at = flap(belief, 100, 3, "abc")
    belief.answer((), at)
    assert belief.deadline == at - 1 + 20
    belief.renew(500)
    assert belief.deadline == 520
    belief.expire(520)
    assert belief.deadline == 530


def says(merge: Merge, source: int, *instances: Instance) -> dict[str, str]:
    """One registry answers; what holds then, as id to address."""
    merge.answers(source, "chat")
    update = merge.put(source, Update("chat", instances, 0.0))
    return {i.id: i.address for i in update.instances or ()} if update is not None else {}


def at(id: str, port: int) -> Instance:
    return Instance("chat", id, "10.0.0.1", port)


def test_what_a_registry_said_before_it_failed_is_second_hand() -> None:
    merge = Merge()
    says(merge, 0, at("a", 1), at("b", 2), at("c", 3))
    says(merge, 1, at("a", 1), at("b", 2))
    assert merge.falls_silent(0, 1.0, "etcd") == []
    # Whoever answers has the say: b has left, a has moved. Nobody but the silent one knows of c.
    assert says(merge, 1, at("a", 9)) == {"a": "10.0.0.1:9", "c": "10.0.0.1:3"}
    assert says(merge, 1, at("a", 9), at("b", 7)) == {
        "a": "10.0.0.1:9",
        "b": "10.0.0.1:7",
        "c": "10.0.0.1:3",
    }
    # Back again, the first registry has the first word again.
    assert says(merge, 0, at("a", 5))["a"] == "10.0.0.1:5"


def test_a_registry_that_fails_hands_precedence_over_at_once() -> None:
    merge = Merge()
    says(merge, 0, at("a", 1))
    says(merge, 1, at("a", 2))
    (update,) = merge.falls_silent(0, 1.0, "etcd")
    assert update.instances == (at("a", 2),)
    assert merge.falls_silent(0, 2.0, "etcd") == []


def test_what_is_remembered_from_disk_is_second_hand() -> None:
    merge = Merge()
    merge.put(0, Update("chat", (at("a", 1),), 0.0))
    assert says(merge, 1, at("a", 2)) == {"a": "10.0.0.1:2"}
