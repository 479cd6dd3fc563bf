"""Every row has, from every camera, the newest frame that existed when the joints were read (or nearly so)."""

from dataclasses import replace
from pathlib import Path

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import NS_PER_MS
from agent.messages import Drive, Source, Tick
from agent.robot.recording.align import NEAR_NS, Aligned, Aligner, Shot
from agent.robot.recording.durable import Disk
from agent.robot.recording.episode import Recording, TickGrid
from agent.robot.recording.journal import Journal
from tests.recording.made import FPS, VIEWS, aligned, header

STALE_NS = 200 * NS_PER_MS
WAIT_NS = 150 * NS_PER_MS


def tick(read_ns: int, due_ns: int | None = None) -> Tick:
    return Tick(0, read_ns if due_ns is None else due_ns, read_ns, Drive.FOLLOW, Source.LEADER)


def times(least: int, most: int) -> st.SearchStrategy[list[int]]:
    """Increasing times in milliseconds, within three seconds."""
    return st.lists(st.integers(0, 3000), min_size=least, max_size=most, unique=True).map(sorted)


@settings(max_examples=60, deadline=None)
@given(front=times(1, 60), wrist=times(1, 60), ticks=times(1, 60), late=st.lists(st.integers(0, 140), min_size=120))
def test_rows_have_every_camera_and_the_newest_frame_whatever_the_order_of_arrival(
    front: list[int], wrist: list[int], ticks: list[int], late: list[int]
) -> None:
    """As long as frames take less than the waiting time. The one frame from a row's future replaces a repeat."""
    cameras = {"front": front, "wrist": wrist}
    arrivals: list[tuple[int, int, str, int]] = [(at, 1, "tick", at) for at in ticks]
    for offset, (name, captures) in enumerate(cameras.items()):
        here = 0
        for number, capture in enumerate(captures):
            here = max(here, capture + late[(2 * number + offset) % len(late)])  # frames of a camera stay in order
            arrivals.append((here, 0, name, capture))
    aligner: Aligner[int] = Aligner(dict.fromkeys(cameras, STALE_NS), WAIT_NS)
    rows: list[Aligned[int]] = []
    for at, _, what, ms in sorted(arrivals):
        rows += aligner.rows((at - 1) * NS_PER_MS)
        if what == "tick":
            aligner.add_tick(tick(ms * NS_PER_MS))
        else:
            aligner.add_frame(what, Shot(ms, ms * NS_PER_MS, ms))
    rows += aligner.rows(10_000 * NS_PER_MS)
    assert aligner.waiting == 0
    assert [row.tick.read_ns for row in rows] == sorted(row.tick.read_ns for row in rows)
    expected = [at for at in ticks if all(captures[0] <= at for captures in cameras.values())]
    assert [row.tick.read_ns // NS_PER_MS for row in rows] == expected
    assert aligner.unseen == len(ticks) - len(expected)
    near = NEAR_NS // NS_PER_MS
    before: dict[str, int] = {}
    for row in rows:
        assert row.seen.keys() == cameras.keys()
        at = row.tick.read_ns // NS_PER_MS
        for name, captures in cameras.items():
            newest = max(capture for capture in captures if capture <= at)
            if newest <= before.get(name, -1):
                newest = next((later for later in captures if before[name] < later <= at + near), before[name])
            assert row.seen[name].shot.frame == newest
            assert row.seen[name].age_ns == (at - newest) * NS_PER_MS
            assert row.seen[name].repeat == (before.get(name) == newest or at - newest > 200)
            before[name] = newest


def test_a_frame_that_one_row_had_early_is_there_for_a_row_before_its_time() -> None:
    """At 200 rows a second, where a row is shorter than what a frame may be early."""
    aligner: Aligner[int] = Aligner({"front": STALE_NS}, WAIT_NS)
    for number, at in enumerate((0, 108)):
        aligner.add_frame("front", Shot(number, at * NS_PER_MS, at))
    for at in (0, 100, 105):
        aligner.add_tick(tick(at * NS_PER_MS))
    rows = list(aligner.rows(1_000 * NS_PER_MS))
    assert [(row.seen["front"].shot.frame, row.seen["front"].repeat) for row in rows] == [
        (0, False),
        (108, False),
        (108, True),
    ]


def test_a_camera_in_phase_with_the_loop_gives_a_new_frame_to_every_row() -> None:
    """Frames jitter by two milliseconds around the very moment of the tick."""
    aligner: Aligner[int] = Aligner({"front": STALE_NS}, WAIT_NS)
    aligner.add_frame("front", Shot(0, 1, 0))
    rows: list[Aligned[int]] = []
    for number in range(1, 91):
        at = number * 33 * NS_PER_MS
        early_or_late = 2 * NS_PER_MS * (-1) ** (number // 3)
        aligner.add_frame("front", Shot(number, at + early_or_late, number))
        aligner.add_tick(tick(at))
        rows += aligner.rows(at + 3 * NS_PER_MS)
    rows += aligner.rows(10_000 * NS_PER_MS)
    assert len(rows) == 90
    assert sum(row.seen["front"].repeat for row in rows) <= 1


def test_a_row_waits_for_a_frame_in_flight_but_not_for_ever() -> None:
    aligner: Aligner[str] = Aligner({"front": STALE_NS}, WAIT_NS)
    aligner.add_frame("front", Shot(1, 0, "old"))
    aligner.add_tick(tick(40 * NS_PER_MS))
    assert list(aligner.rows(60 * NS_PER_MS)) == []
    aligner.add_frame("front", Shot(2, 33 * NS_PER_MS, "new"))
    assert list(aligner.rows(70 * NS_PER_MS)) == []  # one between 33 and 40 ms may still come
    aligner.add_frame("front", Shot(3, 66 * NS_PER_MS, "newer"))
    [row] = aligner.rows(75 * NS_PER_MS)
    assert row.seen["front"].shot.frame == "new"
    aligner.add_tick(tick(100 * NS_PER_MS))
    assert list(aligner.rows(249 * NS_PER_MS)) == []
    [row] = aligner.rows(250 * NS_PER_MS)
    assert row.seen["front"].shot.frame == "newer"


def test_a_camera_that_restarts_counts_its_frames_anew_without_confusing_rows() -> None:
    aligner: Aligner[str] = Aligner({"front": STALE_NS}, WAIT_NS)
    aligner.add_frame("front", Shot(900, 10, "before"))
    aligner.add_frame("front", Shot(1, 20, "after"))
    aligner.add_frame("front", Shot(2, 20, "the same moment again"))
    aligner.add_tick(tick(25))
    [row] = aligner.rows(WAIT_NS + 25)
    assert row.seen["front"].shot.frame == "after"


@settings(max_examples=30, deadline=None)
@given(factor=st.sampled_from([1, 2, 3, 5]), jitter=st.lists(st.floats(-0.2, 0.2), min_size=200, max_size=200))
def test_at_a_multiple_of_the_rate_every_nth_tick_is_a_row(factor: int, jitter: list[float]) -> None:
    fps, hz = 20, 20 * factor
    grid = TickGrid(fps, hz)
    dues = [round((number + jitter[number % 200] * (number > 0)) * 1e9 / hz) for number in range(150)]
    rows = [grid.position(due, dues[0]) for due in dues]
    assert [row for row in rows if row is not None] == list(range((149 // factor) + 1))


def test_a_camera_slower_than_the_rows_repeats_without_losing_anything(tmp_path: Path) -> None:
    """15 frames a second in 30 rows: every other row is marked as a repeat, and the episode is accepted."""
    views = tuple(msgspec.structs.replace(view, fps=FPS // 2) for view in VIEWS)
    head = header(views=views)
    recording = Recording(Journal.create(tmp_path, head, Disk()), head, Disk())
    for row in range(24):
        item = aligned(row + 1, row, head)
        age_ns = round((row % 2) * 1e9 / FPS) + NS_PER_MS
        seen = {camera: replace(it, repeat=row % 2 == 1, age_ns=age_ns) for camera, it in item.seen.items()}
        recording.add(replace(item, seen=seen), 0)
    assert recording.counters.repeats == {"front": 12, "wrist": 12}
    assert recording.verdict(max_repeat_pct=20) is None
    recording.close()
