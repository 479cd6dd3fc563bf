"""What the arm is told to do, whatever becomes of the chunks on their way."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.clock import NS_PER_S
from agent.inference.queue import MAX_ACTIONS, MAX_AHEAD_S, MAX_STEP_TICKS, MAX_WAITING, ChunkQueue, Verdict
from agent.messages import Joints
from agent.policy_messages import Chunk

FPS = 30
PERIOD_NS = NS_PER_S // FPS
SEAM = 2.0
FADE_S = 0.2
HELD: Joints = (10.0, -20.0, 30.0, 0.0, 5.0, 50.0)
EPS = 1e-6


def pose(value: float) -> Joints:
    return (value, -value, value / 2, 0.0, 1.0, 50.0)


def chunk(
    start_ns: int,
    actions: Iterable[Joints],
    seq: int = 0,
    generation: int = 1,
    period_ns: int = PERIOD_NS,
) -> Chunk:
    return Chunk(generation, seq, start_ns, period_ns, tuple(actions), "test", 0)


def queue(crossfade_s: float = FADE_S, max_seam: float = SEAM, hz: int = FPS) -> ChunkQueue:
    made = ChunkQueue(crossfade_s, max_seam, 1 / hz)
    made.reset(1)
    return made


def largest(a: Joints, b: Joints) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def asked(actions: tuple[Joints, ...], start_ns: int, period_ns: int, plan_ns: int) -> Joints:
    """What a chunk asks for at a plan time, in plain words."""
    where = min(max((plan_ns - start_ns) / period_ns, 0), len(actions) - 1)
    low = int(where)
    high = min(low + 1, len(actions) - 1)
    a = [x + (y - x) * (where - low) for x, y in zip(actions[low], actions[high], strict=True)]
    return (a[0], a[1], a[2], a[3], a[4], a[5])


def of(taken: Chunk, plan_ns: int) -> Joints:
    return asked(taken.actions, taken.start_ns, taken.period_ns, plan_ns)


def end_ns(taken: Chunk) -> int:
    return taken.start_ns + len(taken.actions) * taken.period_ns


# --- whatever happens ----------------------------------------------------------------------------------


@dataclass
class Arm:
    """Calls a queue as the arm does, and checks each answer against the chunks that were taken."""

    queue: ChunkQueue
    hz: int
    held: Joints = HELD
    now_ns: int = 5
    plans: list[int] = field(default_factory=list)  # of every tick of the generation
    taken: list[Chunk] = field(default_factory=list)
    emitted_ns: int = -1
    merged: Chunk | None = None
    slack: float = 0.0  # how far from its chunk the pose may be

    def offer(self, offered: Chunk) -> Verdict:
        verdict = self.queue.offer(offered)
        if verdict is Verdict.TAKEN:
            self.taken.append(offered)
        return verdict

    def reset(self, generation: int) -> None:
        self.queue.reset(generation)
        self.plans, self.taken, self.emitted_ns, self.merged = [], [], -1, None

    def hole_ns(self, since_ns: int, until_ns: int) -> int:
        """How much of a stretch of plan time has no action. A chunk counts from its start until the next one's."""
        ends = [min(end_ns(a), b.start_ns) for a, b in pairwise(self.taken)] + [end_ns(self.taken[-1])]
        acts = (min(end, until_ns) - max(c.start_ns, since_ns) for c, end in zip(self.taken, ends, strict=True))
        return until_ns - since_ns - sum(max(0, act) for act in acts)

    def tick(self, dt_ns: int) -> None:
        before_ns = self.queue.plan_ns
        said = self.queue.at(self.now_ns + dt_ns, self.held)
        if dt_ns <= 0 and self.plans:
            assert self.queue.plan_ns == before_ns, "time that does not advance moved the plan"
            return
        self.now_ns += dt_ns
        plan_ns = self.queue.plan_ns
        assert plan_ns >= before_ns, "plan time ran backwards"
        self.plans.append(plan_ns)
        due = [c for c in self.taken if c.start_ns <= plan_ns]
        if said is None:
            assert not due or end_ns(due[-1]) <= plan_ns, "starved although there are actions"
            assert len(due) == len(self.taken), "starved although an action waits"
            return
        assert plan_ns > self.emitted_ns, "an action was executed twice or out of order"
        active = due[-1]
        assert active.start_ns <= plan_ns < end_ns(active), "an action that has expired, or has not begun, was executed"
        acted_ns = plan_ns - before_ns - self.hole_ns(before_ns, plan_ns)
        assert acted_ns <= MAX_STEP_TICKS * NS_PER_S // self.hz + 1, "the arm was made to catch up"
        offset = largest(said, of(active, plan_ns))
        seam = [
            (a - b) - (c - d)
            for a, b, c, d in zip(said, of(active, plan_ns), self.held, of(active, before_ns), strict=True)
        ]
        assert max(map(abs, seam)) <= SEAM + EPS, "the merge added a larger step than allowed"
        if active is not self.merged:
            self.merged = active
            self.slack = largest(self.held, of(active, before_ns)) + 0.15 * SEAM * self.hz * FADE_S
        assert offset <= self.slack + EPS, "the pose strays from the chunk"
        self.held, self.emitted_ns = said, plan_ns


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_only_the_newest_actions_of_this_generation_run_each_once_in_order_and_in_time(data: st.DataObject) -> None:
    """Random rates, delays, losses, duplicates, reorderings, resets, lengths, pauses."""
    hz = data.draw(st.integers(10, 200), "hz")
    fade_s = data.draw(st.sampled_from([0.0, 0.05, FADE_S]), "crossfade")
    arm = Arm(queue(fade_s, hz=hz), hz)
    generation = 1
    sent: list[Chunk] = []
    seq = 0
    tick_ns = NS_PER_S // hz
    for _ in range(data.draw(st.integers(1, 60), "ticks")):
        match data.draw(st.sampled_from(["tick"] * 6 + ["predict"] * 4 + ["repeat", "reset", "foreign"]), "event"):
            case "predict" if arm.plans:
                delay = data.draw(st.integers(1, len(arm.plans)), "observed ticks ago")
                ahead_ns = data.draw(st.sampled_from([0] * 5 + [3 * tick_ns, NS_PER_S]), "ahead")
                n = data.draw(st.integers(1, 40), "actions")
                values = data.draw(st.lists(st.floats(-90, 90), min_size=2, max_size=2), "line")
                actions = [pose(values[0] + (values[1] - values[0]) * i / n) for i in range(n)]
                period_ns = NS_PER_S // data.draw(st.integers(10, 100), "fps")
                made = chunk(arm.plans[-delay] + ahead_ns, actions, seq, generation, period_ns)
                seq += 1
                sent.append(made)
                if data.draw(st.booleans(), "arrives at once"):
                    arm.offer(made)
            case "repeat" if sent:
                again = data.draw(st.sampled_from(sent), "again")
                newest = max((c.seq for c in arm.taken), default=-1)
                verdict = arm.offer(again)
                if again.generation != generation:
                    assert verdict is Verdict.GENERATION
                elif again.seq <= newest:
                    assert verdict is Verdict.ORDER
            case "reset":
                generation += 1
                arm.reset(generation)
                seq = 0
            case "foreign":
                other = data.draw(st.sampled_from([0, generation - 1, generation + 1]), "generation")
                assert arm.offer(chunk(arm.queue.plan_ns, [HELD] * 9, 999, other)) is Verdict.GENERATION
            case _:
                arm.tick(data.draw(st.sampled_from([tick_ns] * 6 + [0, -5, 1, tick_ns // 3, 5 * tick_ns]), "dt"))


@settings(max_examples=60, deadline=None)
@given(
    hz=st.integers(10, 200),
    n=st.integers(2, 60),
    delays=st.lists(st.integers(0, 150), min_size=1, max_size=12),
    lost=st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_chunks_that_agree_are_executed_as_one_motion(hz: int, n: int, delays: list[int], lost: list[bool]) -> None:
    """Each action says to which moment it belongs, so that the pose shows what was executed when."""
    line = queue(crossfade_s=0.0, hz=hz)
    held, now_ns, emitted = pose(0.0), 0, []
    for seq, delay in enumerate(delays):
        anchor_ns = line.plan_ns
        for _ in range(delay + 1):
            now_ns += NS_PER_S // hz
            said = line.at(now_ns, held)
            if said is not None:
                held = said
                emitted.append((line.plan_ns, said[0]))
        if not lost[seq]:
            line.offer(chunk(anchor_ns, [pose((anchor_ns + i * PERIOD_NS) / NS_PER_S) for i in range(n)], seq))
    for plan_ns, value in emitted:
        # In the last period of a chunk its last action stands.
        assert -EPS <= plan_ns / NS_PER_S - value <= 1 / FPS + EPS
    assert [p for p, _ in emitted] == sorted({p for p, _ in emitted})


# --- starvation ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [30, 100])
@pytest.mark.parametrize("delay_s", [0.2, 0.4, 0.8, 1.2, 2.0, 5.0])
def test_starvation_is_the_least_possible(delay_s: float, hz: int) -> None:
    """Sequential inference of L ticks with chunks of H actions starves max(0, 1 - (H/2)/L), and never for ever."""
    h, length = 50, round(delay_s * hz)
    schedule = queue(hz=hz)
    held, starved, ticks, chunks = HELD, 0, 0, 0
    observed_ns = 0
    for k in range(length * 41):
        if k and k % length == 0:
            schedule.offer(chunk(observed_ns, [HELD] * h, chunks))
            chunks += 1
        said = schedule.at(k * NS_PER_S // hz, held)
        if k % length == 0:
            observed_ns = schedule.plan_ns
        if k >= length:  # since the first chunk; an even number of chunks
            ticks += 1
            starved += said is None
    floor = max(0.0, 1 - (h / 2) / (delay_s * FPS))
    assert starved / ticks == pytest.approx(floor, abs=chunks / ticks)
    if delay_s <= 0.8:
        assert starved == 0


def test_the_first_chunk_begins_with_its_first_action_however_late_it_is() -> None:
    schedule = queue(crossfade_s=0.0, max_seam=100)
    assert [schedule.at(tick * PERIOD_NS, HELD) for tick in range(300)] == [None] * 300
    assert schedule.plan_ns == 0
    schedule.offer(chunk(0, [pose(1.0), pose(2.0)]))
    assert schedule.at(300 * PERIOD_NS, HELD) == pytest.approx(pose(1.0))
    assert schedule.at(301 * PERIOD_NS, HELD) == pytest.approx(pose(2.0))
    assert schedule.at(302 * PERIOD_NS, HELD) is None
    assert schedule.starved


def test_late_actions_are_skipped_and_early_ones_wait() -> None:
    schedule = queue(crossfade_s=0.0, max_seam=1000)
    schedule.offer(chunk(0, [pose(0.0)] * 20, 0))
    for tick in range(10):
        schedule.at(tick * PERIOD_NS, HELD)
    assert schedule.offer(chunk(4 * PERIOD_NS, [pose(float(i)) for i in range(20)], 1)) is Verdict.TAKEN
    assert schedule.at(10 * PERIOD_NS, HELD) == pytest.approx(pose(6.0))
    early = chunk(13 * PERIOD_NS, [pose(100.0 + i) for i in range(5)], 2)
    assert schedule.offer(early) is Verdict.TAKEN
    values = [schedule.at(tick * PERIOD_NS, HELD) for tick in range(11, 15)]
    assert values == [pytest.approx(pose(v)) for v in (7.0, 8.0, 100.0, 101.0)]


def test_a_hole_between_two_chunks_takes_no_time() -> None:
    schedule = queue(crossfade_s=0.0, max_seam=1000)
    schedule.offer(chunk(0, [pose(0.0)] * 2, 0))
    schedule.offer(chunk(NS_PER_S, [pose(7.0)] * 2, 1))
    said = [schedule.at(tick * PERIOD_NS, HELD) for tick in range(5)]
    assert [value and value[0] for value in said] == pytest.approx([0.0, 0.0, 7.0, 7.0, None])


# --- merging -------------------------------------------------------------------------------------------


def run(schedule: ChunkQueue, ticks: int, hz: int, held: Joints, start_ns: int) -> list[Joints]:
    out = []
    for tick in range(ticks):
        said = schedule.at(start_ns + tick * NS_PER_S // hz, held)
        if said is not None:
            held = said
            out.append(said)
    return out


@pytest.mark.parametrize("hz", [10, 30, 100, 200])
@pytest.mark.parametrize("jump", [0.5, 5.0, 40.0])
def test_a_seam_is_faded_out_in_time_or_as_fast_as_the_limit_allows(hz: int, jump: float) -> None:
    schedule = queue(hz=hz)
    schedule.offer(chunk(0, [pose(0.0)] * 300, 0))
    run(schedule, hz, hz, pose(0.0), 0)
    schedule.offer(chunk(schedule.plan_ns, [pose(jump)] * 300, 1))
    said = run(schedule, hz * 5, hz, pose(0.0), NS_PER_S)
    steps = [largest(a, b) for a, b in zip([pose(0.0), *said], said, strict=False)]
    assert max(steps) <= SEAM + EPS
    assert schedule.seam == schedule.seam_max == pytest.approx(max(steps))
    arrived = next(i for i, value in enumerate(said) if largest(value, pose(jump)) < 1e-6)
    assert arrived / hz <= max(FADE_S, 1.5 * jump / SEAM / hz) + 1.01 / hz
    assert all(largest(value, pose(jump)) < 1e-6 for value in said[arrived:])
    values = [value[0] for value in said[:arrived]]
    assert values == sorted(values), "it goes straight there"


def test_speed_goes_over_as_smoothly_as_the_pose() -> None:
    """Both chunks move at a speed of their own; neither the pose nor the speed jumps where they meet."""
    hz = 100
    schedule = queue(hz=hz)
    schedule.offer(chunk(0, [pose(i * 0.5) for i in range(100)], 0))
    before = run(schedule, hz, hz, pose(0.0), 0)
    here, plan_ns = before[-1][0], schedule.plan_ns
    schedule.offer(chunk(plan_ns, [pose(here + 2 - i * 0.5) for i in range(100)], 1))
    after = run(schedule, hz, hz, before[-1], NS_PER_S)
    values = [value[0] for value in before[-20:] + after]
    speeds = [(b - a) * hz for a, b in pairwise(values)]
    changes = [abs(b - a) for a, b in pairwise(speeds)]
    assert max(changes) < 10, "30 degrees a second, reversed within 0.2 s"


def test_a_starved_arm_starts_again_from_where_it_was_held() -> None:
    schedule = queue()
    schedule.offer(chunk(0, [pose(3.0)] * 10, 0))
    last = run(schedule, 30, FPS, HELD, 0)[-1]
    assert schedule.starved
    held = pose(4.0)  # what was sent, after the safety filter
    schedule.offer(chunk(schedule.plan_ns, [pose(8.0)] * 30, 1))
    first = schedule.at(2 * NS_PER_S, held)
    assert last != held
    assert first == pytest.approx(held), "without a jump"
    assert run(schedule, 20, FPS, held, 2 * NS_PER_S + 1)[-1] == pytest.approx(pose(8.0))


def test_a_chunk_in_the_middle_of_a_fade_needs_no_special_care() -> None:
    schedule = queue(hz=100)
    schedule.offer(chunk(0, [pose(0.0)] * 100, 0))
    said = run(schedule, 100, 100, pose(0.0), 0)
    for seq in range(1, 40):
        schedule.offer(chunk(schedule.plan_ns, [pose(15.0 * (-1) ** seq)] * 100, seq))
        said += run(schedule, 5, 100, said[-1], len(said) * NS_PER_S // 100)
    steps = [largest(a, b) for a, b in pairwise(said)]
    assert max(steps) <= SEAM + EPS
    said += run(schedule, 60, 100, said[-1], len(said) * NS_PER_S // 100)
    assert said[-1] == pytest.approx(pose(-15.0))


@pytest.mark.parametrize("hz", [10, 30, 50, 200])
def test_actions_are_interpolated_at_any_rate(hz: int) -> None:
    schedule = queue(crossfade_s=0.0, max_seam=1000, hz=hz)
    schedule.offer(chunk(0, [pose(float(i)) for i in range(31)]))
    said = run(schedule, hz, hz, pose(0.0), 0)
    assert [value[0] for value in said] == pytest.approx([i * FPS / hz for i in range(hz)], abs=1e-5)


def test_an_arm_that_was_kept_waiting_does_not_catch_up() -> None:
    schedule = queue(crossfade_s=0.0)
    schedule.offer(chunk(0, [pose(float(i)) for i in range(40)]))
    schedule.at(0, HELD)
    schedule.at(NS_PER_S, HELD)
    assert schedule.plan_ns <= 2 * PERIOD_NS + 1
    schedule.at(NS_PER_S - 5, HELD)
    assert schedule.plan_ns <= 2 * PERIOD_NS + 1


# --- what is refused -----------------------------------------------------------------------------------

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("what", "offered", "verdict"),
    [
        ("older generation", chunk(0, [HELD], generation=6), Verdict.GENERATION),
        ("newer generation", chunk(0, [HELD], generation=8), Verdict.GENERATION),
        ("empty", chunk(0, [], 5, 7), Verdict.MALFORMED),
        ("not a number", chunk(0, [HELD, (0.0, NAN, 0.0, 0.0, 0.0, 0.0)], 5, 7), Verdict.MALFORMED),
        ("infinite", chunk(0, [(0.0, 0.0, 0.0, 0.0, 0.0, -INF)], 5, 7), Verdict.MALFORMED),
        ("huge", chunk(0, [(1e9, 0.0, 0.0, 0.0, 0.0, 0.0)], 5, 7), Verdict.MALFORMED),
        ("five joints", chunk(0, [HELD[:5]], 5, 7), Verdict.MALFORMED),  # type: ignore[list-item]
        ("seven joints", chunk(0, [(*HELD, 0.0)], 5, 7), Verdict.MALFORMED),  # type: ignore[list-item]
        ("no period", chunk(0, [HELD], 5, 7, period_ns=0), Verdict.MALFORMED),
        ("backwards", chunk(0, [HELD], 5, 7, period_ns=-PERIOD_NS), Verdict.MALFORMED),
        ("milliseconds for nanoseconds", chunk(0, [HELD], 5, 7, period_ns=2 * NS_PER_S), Verdict.MALFORMED),
        ("before the task", chunk(-1, [HELD] * 99, 5, 7), Verdict.MALFORMED),
        ("too long", chunk(0, [HELD] * (MAX_ACTIONS + 1), 5, 7), Verdict.MALFORMED),
        ("again", chunk(5 * PERIOD_NS, [HELD] * 9, 2, 7), Verdict.ORDER),
        ("older", chunk(5 * PERIOD_NS, [HELD] * 9, 1, 7), Verdict.ORDER),
        ("of an older observation", chunk(2 * PERIOD_NS, [HELD] * 99, 3, 7), Verdict.ORDER),
        ("all of it in the past", chunk(4 * PERIOD_NS, [HELD] * 2, 3, 7), Verdict.EXPIRED),
        ("far ahead", chunk(round((MAX_AHEAD_S + 10) * NS_PER_S), [HELD], 3, 7), Verdict.AHEAD),
        ("good", chunk(5 * PERIOD_NS, [HELD] * 9, 3, 7), Verdict.TAKEN),
    ],
)
def test_a_chunk_that_may_not_run_is_refused_and_the_schedule_goes_on(
    what: str, offered: Chunk, verdict: Verdict
) -> None:
    schedule = ChunkQueue(FADE_S, SEAM, 1 / FPS)
    schedule.reset(7)
    assert schedule.offer(chunk(3 * PERIOD_NS, [pose(1.0)] * 40, 2, 7)) is Verdict.TAKEN
    for tick in range(8):
        schedule.at(tick * PERIOD_NS, pose(1.0))
    assert schedule.offer(offered) is verdict, what
    assert schedule.at(8 * PERIOD_NS, pose(1.0)) is not None
    assert schedule.depth == (2 if verdict is Verdict.TAKEN else 31)


def test_a_flood_of_early_chunks_is_bounded() -> None:
    schedule = queue()
    verdicts = [schedule.offer(chunk(seq * PERIOD_NS, [HELD], seq)) for seq in range(MAX_WAITING + 5)]
    assert verdicts == [Verdict.TAKEN] * MAX_WAITING + [Verdict.AHEAD] * 5
    assert len(run(schedule, 100, FPS, HELD, 0)) == MAX_WAITING


def test_a_closed_queue_and_a_new_generation_forget_everything() -> None:
    schedule = queue()
    schedule.offer(chunk(0, [pose(1.0)] * 30, 4))
    assert run(schedule, 10, FPS, HELD, 0)
    schedule.close()
    assert schedule.at(NS_PER_S, HELD) is None
    assert schedule.offer(chunk(0, [HELD] * 30, 5)) is Verdict.GENERATION
    assert schedule.offer(chunk(0, [HELD] * 30, 5, generation=0)) is Verdict.GENERATION
    with pytest.raises(ValueError, match="not larger"):
        schedule.reset(1)
    schedule.reset(2)
    assert (schedule.plan_ns, schedule.depth, schedule.seam_max) == (0, 0, 0.0)
    assert schedule.offer(chunk(0, [HELD] * 30, 4, generation=1)) is Verdict.GENERATION
    assert schedule.offer(chunk(0, [HELD] * 30, 0, generation=2)) is Verdict.TAKEN


# --- the mirror in the policy process ------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    delays=st.lists(st.integers(1, 60), min_size=2, max_size=8),
    values=st.lists(st.floats(-50, 50), min_size=8, max_size=8),
)
def test_what_lies_ahead_is_what_the_arm_then_does(delays: list[int], values: list[float]) -> None:
    arm, mirror = queue(max_seam=1000), queue(max_seam=1000)
    held, foreseen = HELD, ()
    tick = 0
    for seq, delay in enumerate(delays):
        anchor_ns = arm.plan_ns
        done: list[Joints] = []
        for _ in range(delay):
            said = arm.at(tick * PERIOD_NS, held)
            tick += 1
            assert mirror.follow(arm.plan_ns, held) == said
            if said is not None:
                held = said
                done.append(said)
            if foreseen == () and said is not None:
                foreseen = mirror.ahead(arm.plan_ns, 50)
                done = [said]
        for expected, executed in zip(foreseen, done, strict=False):
            assert executed == pytest.approx(expected)
        foreseen = ()
        made = chunk(anchor_ns, [pose(values[seq])] * 30, seq)
        assert arm.offer(made) is mirror.offer(made)
    assert mirror.depth == arm.depth


def test_the_mirror_follows_an_arm_that_has_a_chunk_it_lacks() -> None:
    mirror = queue()
    assert mirror.ahead(0, 5) == ()
    mirror.offer(chunk(0, [HELD] * 10, 0))
    assert mirror.follow(0, HELD) is not None
    assert mirror.follow(NS_PER_S, HELD) is None
    assert mirror.plan_ns == NS_PER_S
    mirror.follow(5, HELD)
    assert mirror.plan_ns == NS_PER_S, "an older tick"
    assert mirror.offer(chunk(NS_PER_S // 2, [HELD] * 10, 1)) is Verdict.EXPIRED
    assert mirror.offer(chunk(NS_PER_S, [HELD] * 10, 2)) is Verdict.TAKEN
    assert len(mirror.ahead(NS_PER_S, 50)) == 10
