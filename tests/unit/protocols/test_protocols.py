"""What travels arrives unchanged, and what is damaged is refused."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import keys, wire
from protocols.errors import DeadlineError, SettingError, WireError
from protocols.turns import Close, Role, Stop, Turn
from protocols.weights import staleness, step_of, version_of

GROUP = keys.group_id("run", 0, "task")

turns = st.builds(
    lambda prompt, response, reward, versions, extra, role: Turn(
        group=GROUP,
        lease=3,
        turn=0,
        parent=-1,
        prompt=np.array(prompt, np.int32),
        response=np.array(response, np.int32),
        logprobs=np.linspace(-5, 0, len(response), dtype=np.float32),
        versions=tuple(versions),
        role=role,
        reward=reward,
        stop=Stop.LENGTH,
        truncated=True,
        timing=(0.5, 1.0, 2.0),
        extra=extra,
    ),
    st.lists(st.integers(0, 2**31 - 1), max_size=40),
    st.lists(st.integers(0, 2**31 - 1), max_size=40),
    st.floats(allow_nan=False, width=32),
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 2**40)), max_size=3),
    st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.text(max_size=8) | st.floats(allow_nan=False)),
    st.sampled_from(Role),
)


def rows_of(*items):
    return [wire.row_of(item, order=7, spread=1.0) for item in items]


@given(turns)
@settings(max_examples=100, deadline=None)
def test_a_turn_arrives_bit_for_bit(turn):
    index, blob = wire.join(rows_of(turn, Close(GROUP, 3, 1)))
    (found,) = wire.whole_group(wire.split(index, blob)).turns
    for name in ("prompt", "response", "logprobs"):
        assert getattr(found, name).tobytes() == getattr(turn, name).tobytes()
    for name in ("parent", "role", "versions", "reward", "stop", "terminated", "truncated", "timing", "extra", "lease"):
        assert getattr(found, name) == getattr(turn, name)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_a_flipped_bit_is_noticed(data):
    turn = data.draw(turns)
    index, blob = wire.join(rows_of(turn))
    place, bit = data.draw(st.integers(0, len(index) + len(blob) - 1)), 1 << data.draw(st.integers(0, 7))
    damaged = bytearray(index + blob)
    damaged[place] ^= bit
    with pytest.raises(WireError):
        wire.split(bytes(damaged[: len(index)]), bytes(damaged[len(index) :]))


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_garbage_is_a_wire_error_and_nothing_else(data):
    for read in (wire.unpack, lambda d: wire.decode_turn(GROUP, 0, 0, d), lambda d: wire.decode_close(GROUP, 0, d)):
        try:
            read(data)
        except WireError:
            continue
    with pytest.raises(WireError):
        wire.split(data[: len(data) - len(data) % wire.ENTRY.size] or bytes(wire.ENTRY.size), b"")


@pytest.mark.parametrize("error", [SettingError("a.b", "is wrong", "Cure it"), DeadlineError("a", "b", 3, "c")])
def test_errors_cross_processes_with_their_words(error):
    again = pickle.loads(pickle.dumps(error))  # as Ray does between our own processes
    assert type(again) is type(error) and str(again) == str(error)


def test_a_message_of_another_schema_is_refused():
    with pytest.raises(WireError, match=f"schema {wire.SCHEMA + 1}"):
        wire.unpack(wire.pack({"schema": wire.SCHEMA + 1}))


def test_a_group_that_lacks_a_turn_is_not_whole():
    with pytest.raises(WireError, match="lacks"):
        wire.whole_group(wire.split(*wire.join(rows_of(Close(GROUP, 3, 1)))))


def test_a_close_row_sets_rewards_that_were_known_late():
    turn = Turn(GROUP, 0, 0, -1, *[np.zeros(1, np.int32)] * 2, np.zeros(1, np.float32), (), Role.ATTEMPT, reward=0.0)
    group = wire.whole_group(wire.split(*wire.join(rows_of(turn, Close(GROUP, 0, 1, rewards={0: 0.5})))))
    assert group.turns[0].reward == 0.5


def test_the_same_play_has_the_same_id_and_another_has_another():
    assert keys.group_id("a", 1, "t") == keys.group_id("a", 1, "t")
    others = {keys.group_id(*key) for key in [("a", 1, "t"), ("b", 1, "t"), ("a", 2, "t"), ("a", 1, "u")]}
    assert len(others) == 4 and all(len(found) == keys.GROUP_BYTES for found in others)


def test_versions_never_repeat_over_incarnations_and_staleness_is_in_steps():
    assert version_of(1, 50) > version_of(0, 57) > version_of(0, 50)
    assert step_of(version_of(3, 12)) == 12
    assert staleness(50, version_of(0, 57)) == 7
    assert staleness(52, version_of(1, 50)) == 2
