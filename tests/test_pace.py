"""Requests to a disk: no more at a time than the setting says, and the setting finds the best."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest

from wspace.storage import pace
from wspace.storage.pace import REQUESTS, Pace, Setting


def run(subject, rate, windows):
    """What would be chosen on a disk that has these rates."""
    seen = []
    for _ in range(windows):
        seen.append(subject.setting)
        subject._judge(rate(subject.setting))
    return seen


@pytest.mark.parametrize("best", [Setting(1, 2 << 20), Setting(8, 256 << 10), Setting(4, 1 << 20)])
def test_the_best_setting_is_found_and_kept(best):
    def rate(setting):
        readers = min(setting.readers, best.readers) / max(setting.readers, best.readers)
        request = min(setting.request, best.request) / max(setting.request, best.request)
        return 1e9 * readers * request

    subject = Pace(8)
    seen = run(subject, rate, 200)
    assert all(1 <= setting.readers <= 8 and setting.request in REQUESTS for setting in seen)
    late = seen[100:]
    assert late.count(best) > 0.8 * len(late), "trials become rare"
    assert len(set(late)) > 1, "but do not end: disks change"


def test_noise_alone_moves_nothing():
    first = Setting(4, 1 << 20)
    seen = run(Pace(8), lambda setting: 1e9 if setting == first else 1.04e9, 50)
    assert len(set(seen)) > 1
    assert all(first in pair for pair in pairwise(seen)), "each trial is followed by what was best"


@pytest.mark.parametrize(
    ("readers", "largest"), [(1, 1 << 20), (3, 2 << 20), (2, 65536), (8, 256 << 10)]
)
def test_settings_stay_within_what_there_is(readers, largest):
    seen = run(Pace(readers, largest), lambda s: s.readers * s.request, 60)
    assert max(s.request for s in seen) == largest
    assert max(s.readers for s in seen) == readers


def test_no_more_run_than_the_setting_says_and_the_rate_is_measured(monkeypatch):
    monkeypatch.setattr(pace, "WINDOW_BYTES", 20 << 20)
    monkeypatch.setattr(pace, "WINDOW_SECONDS", 0.0)
    subject = Pace(2)
    subject._trials, subject._rest, subject._resting = [], 99, 99
    rates, judge = [], subject._judge
    monkeypatch.setattr(subject, "_judge", lambda rate: (rates.append(rate), judge(rate)))
    running, most, lock = 0, 0, threading.Lock()

    def request(_):
        nonlocal running, most
        with subject.request(1 << 20):
            with lock:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            with lock:
                running -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(request, range(60)))
    assert most == 2
    assert len(rates) == 3
    # two at a time, each 1 MiB in 5 ms or more
    assert all(0.1 * 419e6 < rate <= 420e6 for rate in rates)


def test_a_reader_that_is_waited_for_by_nobody_is_not_judged(monkeypatch):
    monkeypatch.setattr(pace, "WINDOW_BYTES", 5 << 20)
    monkeypatch.setattr(pace, "WINDOW_SECONDS", 0.0)
    subject = Pace(4)
    monkeypatch.setattr(subject, "_judge", lambda rate: pytest.fail("one at a time says nothing"))
    for _ in range(20):
        with subject.request(1 << 20):
            time.sleep(0.001)
