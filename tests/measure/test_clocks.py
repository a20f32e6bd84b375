"""Clocks: calls are timed between an idle device and an idle device."""

import time

from apart_fast.measure.clocks import HostClock, clock_of, time_calls


class Device:
    """A clock of a device that does its work later, when it is waited for."""

    def __init__(self):
        self.now, self.queue = 0, []

    def mark(self):
        box = []
        self.queue.append(lambda: box.append(self.now))
        return box

    def seconds(self, begin, end):
        return end[0] - begin[0]

    def wait(self):
        for job in self.queue:
            job()
        self.queue.clear()

    def work(self, seconds):
        self.queue.append(lambda: setattr(self, "now", self.now + seconds))


def test_the_mean_of_calls_in_a_row_counts_their_work_alone():
    device = Device()
    device.work(100)  # of somebody else, still to be done
    assert time_calls(lambda: device.work(3), device, calls=4) == 3
    assert device.now == 112


def test_the_host_clock_counts_seconds():
    clock = clock_of("cpu")
    assert isinstance(clock, HostClock)
    assert time_calls(lambda: time.sleep(0.02), clock) >= 0.02
