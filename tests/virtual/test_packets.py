"""The bus, byte by byte: protocol 0 as Feetech's manual describes it."""

import pytest

from agent.virtual.bus import BROADCAST_ID, BYTE_TIME_S, Instruction, ServoBus
from agent.virtual.calibration import default_calibration, servos
from agent.virtual.faults import ReplyFault
from agent.virtual.servo import Register, Servo, Status, decode_signed, encode_signed


def packet(servo_id: int, instruction: int, *parameters: int) -> bytes:
    body = bytes([servo_id, len(parameters) + 2, instruction, *parameters])
    return b"\xff\xff" + body + bytes([~sum(body) & 255])


def word(value: int) -> tuple[int, int]:
    return value & 255, value >> 8


@pytest.fixture
def bus() -> ServoBus:
    return ServoBus(servos(default_calibration("so101")))


def answers(bus: ServoBus, data: bytes) -> list[bytes]:
    return [reply.data for reply in bus.feed(data)]


def test_a_ping_is_answered_with_id_status_and_checksum(bus: ServoBus) -> None:
    assert answers(bus, packet(3, Instruction.PING)) == [bytes([0xFF, 0xFF, 3, 2, 0, ~5 & 255])]
    assert answers(bus, packet(9, Instruction.PING)) == []


def test_a_broadcast_ping_finds_every_servo_and_a_broadcast_write_is_silent(bus: ServoBus) -> None:
    assert [reply[2] for reply in answers(bus, packet(BROADCAST_ID, Instruction.PING))] == [1, 2, 3, 4, 5, 6]
    assert answers(bus, packet(BROADCAST_ID, Instruction.WRITE, Register.TORQUE_ENABLE, 1)) == []
    assert all(servo.torque_enabled for servo in bus.servos)


def test_a_request_may_arrive_in_pieces_behind_garbage(bus: ServoBus) -> None:
    request = b"\x00\xff\x17" + packet(1, Instruction.READ, Register.MODEL, 2)
    assert next(reply for byte in request for reply in answers(bus, bytes([byte])))[5:7] == bytes(word(777))


def test_a_request_with_a_wrong_checksum_is_ignored(bus: ServoBus) -> None:
    wrong = packet(1, Instruction.WRITE, Register.TORQUE_ENABLE, 1)
    assert answers(bus, wrong[:-1] + bytes([wrong[-1] ^ 1])) == []
    assert not bus.servos[0].torque_enabled
    assert bus.bad_checksums == 1
    assert answers(bus, packet(1, Instruction.PING))


def test_a_sync_read_answers_in_the_order_asked_and_a_missing_servo_leaves_a_gap(bus: ServoBus) -> None:
    request = packet(BROADCAST_ID, Instruction.SYNC_READ, Register.PRESENT_POSITION, 2, 3, 1, 5)
    assert [reply[2] for reply in answers(bus, request)] == [3, 1, 5]
    bus.servos[0].present = False
    assert [reply[2] for reply in answers(bus, request)] == [3, 5]


def test_a_sync_write_reaches_each_servo_and_the_wire_log(bus: ServoBus) -> None:
    rows = [*(1, *word(2000)), *(2, *word(2100))]
    assert answers(bus, packet(BROADCAST_ID, Instruction.SYNC_WRITE, Register.GOAL_POSITION, 2, *rows)) == []
    assert [bus.servos[index].get(Register.GOAL_POSITION) for index in (0, 1)] == [2000, 2100]
    assert [(goal.servo_id, goal.raw) for goal in bus.goals.writes()] == [(1, 2000), (2, 2100)]
    assert bus.goals.count == 1


def test_a_registered_write_waits_for_its_action(bus: ServoBus) -> None:
    before = bus.servos[1].get(Register.GOAL_POSITION)
    answers(bus, packet(2, Instruction.REG_WRITE, Register.GOAL_POSITION, *word(1234)))
    assert bus.servos[1].get(Register.GOAL_POSITION) == before
    assert bus.goals.count == 0
    answers(bus, packet(BROADCAST_ID, Instruction.ACTION))
    assert bus.servos[1].get(Register.GOAL_POSITION) == 1234
    assert bus.goals.writes()[0].raw == 1234


def test_a_goal_in_a_longer_write_is_logged_too(bus: ServoBus) -> None:
    answers(bus, packet(4, Instruction.WRITE, Register.ACCELERATION, 254, *word(999), 0, 0, 0, 0))
    assert [(goal.servo_id, goal.raw) for goal in bus.goals.writes()] == [(4, 999)]


def test_read_only_registers_and_unknown_instructions_do_nothing(bus: ServoBus) -> None:
    answers(bus, packet(1, Instruction.WRITE, Register.MODEL, 1, 1))
    assert bus.servos[0].get(Register.MODEL) == 777
    assert answers(bus, packet(1, 0x55)) == []


def test_at_response_level_0_only_reads_and_pings_are_answered(bus: ServoBus) -> None:
    answers(bus, packet(1, Instruction.WRITE, Register.RESPONSE_LEVEL, 0))
    assert answers(bus, packet(1, Instruction.WRITE, Register.TORQUE_ENABLE, 1)) == []
    assert answers(bus, packet(1, Instruction.PING))


def test_a_paced_bus_takes_as_long_as_1_mbaud(bus: ServoBus) -> None:
    paced = ServoBus(bus.servos, paced=True)
    for servo in paced.servos:
        servo.write(Register.RETURN_DELAY, b"\x00")
    request = packet(BROADCAST_ID, Instruction.SYNC_READ, Register.PRESENT_POSITION, 2, 1, 2, 3, 4, 5, 6)
    replies = paced.feed(request)
    assert replies[-1].delay_s == pytest.approx((len(request) + 6 * 8) * BYTE_TIME_S)
    assert replies[0].delay_s < replies[-1].delay_s


@pytest.mark.parametrize(
    ("value", "bit", "raw"), [(-1, 15, 0x8001), (5, 15, 5), (-2047, 11, 0xFFF), (-3000, 11, 0xFFF)]
)
def test_signed_registers_are_sign_and_magnitude(value: int, bit: int, raw: int) -> None:
    assert encode_signed(value, bit) == raw
    assert decode_signed(raw, bit) == max(value, -2047 if bit == 11 else value)


def test_present_position_is_the_encoder_less_the_homing_offset_within_one_turn() -> None:
    servo = Servo(1, homing_offset=-500, position=3800)
    assert servo.present_position() == (3800 + 500) % 4096


def test_a_goal_beyond_the_angle_limits_is_approached_only_to_the_limit() -> None:
    servo = Servo(1, homing_offset=100, range_min=1000, range_max=3000, position=2100)
    servo.write(Register.TORQUE_ENABLE, b"\x01")
    servo.set(Register.GOAL_POSITION, -3716)
    assert servo.target() == pytest.approx(1100)
    servo.set(Register.GOAL_POSITION, 4000)
    assert servo.target() == pytest.approx(3100)


def test_writing_128_to_torque_makes_the_present_position_the_middle() -> None:
    servo = Servo(1, position=777)
    servo.write(Register.TORQUE_ENABLE, bytes([128]))
    assert servo.present_position() == 2048
    assert not servo.torque_enabled


def test_load_heats_a_servo_and_heat_beyond_its_limit_unloads_it() -> None:
    servo = Servo(1)
    servo.write(Register.TORQUE_ENABLE, b"\x01")
    servo.effort = 0.7
    for _ in range(60):
        servo.advance(1.0)
    warm = servo.temperature_c
    assert 35 < warm < 60
    servo.hot_c = 75
    servo.advance(0.01)
    assert servo.status() & Status.HEAT
    assert servo.target() is None
    servo.hot_c = None
    assert not servo.driving  # stays off until torque is written again
    servo.write(Register.TORQUE_ENABLE, b"\x00")
    servo.write(Register.TORQUE_ENABLE, b"\x01")
    assert servo.driving


def test_overload_trips_after_its_time_limits_the_torque_and_a_goal_the_other_way_releases_it() -> None:
    servo = Servo(1)
    servo.write(Register.TORQUE_ENABLE, b"\x01")
    servo.set(Register.GOAL_POSITION, servo.present_position() + 300)
    servo.effort = 1.0
    servo.advance(1.9)
    assert servo.torque_limit == 1.0
    servo.advance(0.2)
    assert servo.status() & Status.OVERLOAD
    assert servo.torque_limit == pytest.approx(0.2)
    servo.set(Register.GOAL_POSITION, servo.present_position() - 300)
    servo.effort = 0.1
    servo.advance(0.01)
    assert not servo.status()


def test_a_fault_hits_only_what_it_names_and_as_often_as_it_says(bus: ServoBus) -> None:
    bus.faults.add("drop", ReplyFault(servo="gripper", instruction="ping", count=2))
    assert answers(bus, packet(1, Instruction.PING))
    assert answers(bus, packet(6, Instruction.READ, Register.MODEL, 2))
    assert [bool(answers(bus, packet(6, Instruction.PING))) for _ in range(3)] == [False, False, True]


def test_random_faults_repeat_with_their_seed() -> None:
    def pattern(seed: int) -> list[bool]:
        bus = ServoBus(servos(default_calibration("so100")))
        bus.faults.add("drop", ReplyFault(probability=0.3, seed=seed))
        return [bool(answers(bus, packet(1, Instruction.PING))) for _ in range(50)]

    assert pattern(1) == pattern(1) != pattern(2)
    assert 5 < pattern(1).count(False) < 25
