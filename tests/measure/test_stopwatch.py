"""The stopwatch: phases add up to the step, inner ones belong to the outer one, and an exception leaves nothing."""

import pytest

from apart_fast.measure.stopwatch import PHASES, WAIT, Stopwatch
from apart_fast.step.spans import MOVE, OPTIMIZER, PASS_1, PASS_2, REMEMBER, SPANS, START, listening, span


class Clock:
    now = 0

    def mark(self):
        return self.now

    def seconds(self, begin, end):
        return end - begin

    def wait(self):
        pass


@pytest.fixture
def clock():
    return Clock()


def test_phases_are_the_wait_the_spans_of_a_step_and_the_rest():
    assert PHASES == ("wait for the loader", *SPANS, "rest")
    assert SPANS == ("start", "pass 1", "move", "pass 2", "remember", "optimizer")


def test_it_adds_up_exactly_and_gives_inner_phases_to_the_outer(clock):
    watch = Stopwatch(clock)
    with listening(watch.phase):
        for waits in (1, 2):
            with watch.step():
                with watch.phase(WAIT):
                    clock.now += waits
                with span(START):
                    clock.now += 1
                with span(REMEMBER):
                    clock.now += 3
                    with span(OPTIMIZER):
                        clock.now += 4
                with span(START):
                    clock.now += 5
                clock.now += 10
            clock.now += 100  # between two steps
    times = watch.read()
    assert [time.whole for time in times] == [24, 25]
    assert [time.phases[WAIT] for time in times] == [1, 2]
    expected = {START: 6, PASS_1: 0, MOVE: 0, PASS_2: 0, REMEMBER: 7, OPTIMIZER: 0, "rest": 10}
    assert [{name: time.phases[name] for name in expected} for time in times] == [expected] * 2
    assert all(sum(time.phases.values()) == time.whole for time in times)


def test_what_lies_outside_of_a_step_is_not_counted(clock):
    watch = Stopwatch(clock)
    with listening(watch.phase), span(START):
        clock.now += 1
    with watch.step(), span(START):  # nobody listens any more
        clock.now += 2
    (time,) = watch.read()
    assert (time.whole, time.phases[START], time.phases["rest"]) == (2, 0, 2)


def test_a_step_that_fails_is_forgotten_and_the_next_one_is_timed(clock):
    watch = Stopwatch(clock)
    with listening(watch.phase):
        with pytest.raises(ZeroDivisionError), watch.step(), span(PASS_1):
            clock.now += 1
            _ = 1 / 0
        with watch.step(), span(PASS_2):
            clock.now += 2
    (time,) = watch.read()
    assert (time.whole, time.phases[PASS_1], time.phases[PASS_2], time.phases["rest"]) == (2, 0, 2, 0)
