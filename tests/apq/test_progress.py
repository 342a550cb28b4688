"""Progress bars: where they are drawn, and the time that they say is left."""

import io

import pytest

from apq import progress
from apq.progress import Counter


class Terminal(io.StringIO):
    """A standard error that somebody watches."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so; bars are drawn."""
    monkeypatch.setattr(progress, "is_terminal", lambda: True)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def drawn(monkeypatch) -> Terminal:
    """Where the bars go."""
    screen = Terminal()
    monkeypatch.setattr("progress.Infinite.file", screen)
    return screen


def last(screen: Terminal) -> str:
    return screen.getvalue().rstrip("\n").split("\r")[-1].split("| ")[-1].split("\x1b")[0].strip()


def test_the_time_left_follows_from_the_share_that_is_done(clock, monkeypatch):
    screen = drawn(monkeypatch)
    with Counter("searching", 40, done=10) as bar:
        clock[0] = 5.0
        bar.step("90%")
        assert last(screen) == "11/40  90%  145 s"  # 29 more at 5 s each
        clock[0] = 10.0
        bar.update(20, 40)
        assert last(screen) == "20/40  20 s"


def test_fractions_of_a_second_count_and_units_may_change(clock, monkeypatch):
    screen = drawn(monkeypatch)
    with Counter("searching", 10.0) as bar:
        for tenths in range(1, 26):
            clock[0] = tenths / 10
            bar.update(tenths / 10, 10.0)
        assert last(screen) == "2/10  8 s"
        clock[0] = 3.0
        bar.update(300, 500)  # other steps are nearer to their end
        assert last(screen) == "300/500  2 s"


def test_a_bar_ends_its_line_whatever_happens(clock, monkeypatch):
    screen = drawn(monkeypatch)
    with pytest.raises(ZeroDivisionError), Counter("searching", 3) as bar:
        bar.update(1 / 0, 3)
    assert screen.getvalue().endswith("\n\x1b[?25h")  # and shows the cursor again


def test_nothing_is_drawn_where_nobody_watches_or_without_a_description(clock, monkeypatch):
    screen = drawn(monkeypatch)
    with Counter("", 3) as bar:
        bar.step()
    monkeypatch.setattr(progress, "is_terminal", lambda: False)
    with Counter("searching", 3) as bar:
        bar.update(1, 3)
    assert screen.getvalue() == ""
