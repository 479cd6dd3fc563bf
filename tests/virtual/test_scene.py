"""The table, the arm on it, and what a hand with this arm can do there."""

import math
from collections.abc import Sequence
from pathlib import Path

import mujoco
import numpy as np
import pytest

from agent.config import ParkPose
from agent.errors import BadInput
from agent.virtual.arm import VirtualArm, default_calibration
from agent.virtual.arm_model import ArmModel
from agent.virtual.dynamics import Dynamics
from agent.virtual.kinematics import Kinematics
from agent.virtual.operator import REST, Operator, Task
from agent.virtual.scene import REACH_M, SECTOR_DEG, SEPARATION_M, Pose2, SceneModel, from_radians, to_radians
from agent.virtual.servo import Register, Status
from tests.virtual.waiting import until

DT_S = 0.004
NOWHERE = Path("/tmp/so-never-plugged")
MODELS: tuple[ArmModel, ...] = ("so100", "so101")


class Bench:
    """An arm on its table, stepped as fast as the host can, with a driver that only writes registers."""

    def __init__(self, model: ArmModel, seed: int = 3) -> None:
        self.arm = VirtualArm(NOWHERE, default_calibration(model), moved=False)
        self.scene = SceneModel(model)
        self.dynamics = Dynamics(self.scene, self.arm, seed)
        self.dynamics.place_arm(REST)

    def torque(self, on: bool) -> None:
        for index, servo in enumerate(self.arm.servos):
            servo.write(Register.P, b"\x10")  # as lerobot's follower sets it
            self.goal(index, self.arm.joints_deg()[index])
            servo.write(Register.TORQUE_ENABLE, bytes([on]))

    def goal(self, index: int, value: float) -> None:
        servo = self.arm.servos[index]
        raw = round(self.arm.scale.to_counts(index, value)) - servo.get(Register.HOMING_OFFSET)
        servo.set(Register.GOAL_POSITION, raw)

    def follow(self, joints: Sequence[float]) -> None:
        for index, value in enumerate(joints):
            self.goal(index, value)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / DT_S)):
            self.dynamics.step(DT_S)


@pytest.mark.parametrize("model", MODELS)
def test_a_seed_gives_the_same_separated_reachable_table_every_time(model: ArmModel) -> None:
    scene = SceneModel(model, discs=("blue", "green", "white"), cubes=("red", "purple"))
    again = SceneModel(model, discs=("blue", "green", "white"), cubes=("red", "purple"))
    assert scene.scatter(7) == again.scatter(7) != scene.scatter(8)
    for seed in range(20):
        poses = list(scene.scatter(seed).values())
        apart = [math.dist(a[:2], b[:2]) for i, a in enumerate(poses) for b in poses[:i]]
        assert min(apart) >= SEPARATION_M


@pytest.mark.parametrize("model", MODELS)
def test_every_place_where_objects_may_lie_can_be_touched(model: ArmModel) -> None:
    scene = SceneModel(model)
    kinematics = Kinematics(scene)
    pan_x = float(scene.model.body("shoulder").pos[0])
    for reach in np.linspace(*REACH_M, 4):
        for bearing in np.radians(np.linspace(-SECTOR_DEG, SECTOR_DEG, 5)):
            x, y = pan_x + reach * math.cos(bearing), reach * math.sin(bearing)
            down = kinematics.line((x, y, 0.09), (x, y, 0.009))
            assert down, f"out of reach: {reach:.2f} m, {math.degrees(bearing):.0f} degrees"
            assert kinematics.forward(down[-1]) == pytest.approx((x, y, 0.009), abs=0.0015)


def test_a_place_out_of_reach_is_said_to_be() -> None:
    kinematics = Kinematics(SceneModel("so101"))
    assert kinematics.solve((0.6, 0.0, 0.05)) is None
    assert kinematics.line((0.25, 0, 0.05), (0.6, 0, 0.05)) == ()


def test_joint_values_and_model_angles_are_each_others_inverse() -> None:
    joints = np.array([10.0, -20.0, 30.0, -40.0, 50.0, 60.0])
    assert from_radians(to_radians(joints)) == pytest.approx(joints)


@pytest.mark.parametrize("model", MODELS)
def test_positive_joint_values_move_as_lerobots_do(model: ArmModel) -> None:
    kinematics = Kinematics(SceneModel(model))
    x, y, z = kinematics.forward((0, 0, 0, 0, 0, 5), "grasp")
    assert kinematics.forward((20, 0, 0, 0, 0, 5), "grasp")[1] < y  # pans to the right
    assert kinematics.forward((0, 20, 0, 0, 0, 5), "grasp")[0] > x  # leans forward
    assert kinematics.forward((0, 0, 20, 0, 0, 5), "grasp")[2] < z  # bends down
    assert kinematics.forward((0, 0, 0, 20, 0, 5), "grasp")[2] < z  # nods down


@pytest.mark.parametrize("model", MODELS)
def test_the_configured_park_pose_and_the_operators_rest_keep_clear_of_the_table(model: ArmModel) -> None:
    kinematics = Kinematics(SceneModel(model))
    park = ParkPose()
    pose = (park.shoulder_pan, park.shoulder_lift, park.elbow_flex, park.wrist_flex, park.wrist_roll, park.gripper)
    assert kinematics.lowest_m(pose) > 0.003
    assert kinematics.lowest_m(REST) > 0.003


@pytest.mark.parametrize("model", MODELS)
def test_the_arm_holds_its_pose_with_torque_and_sinks_without(model: ArmModel) -> None:
    bench = Bench(model)
    pose = (0.0, 0.0, 0.0, 0.0, 0.0, 20.0)
    bench.dynamics.place_arm(pose)
    bench.torque(True)
    bench.run(1.0)
    assert bench.arm.joints_deg() == pytest.approx(pose, abs=0.5)
    assert 0.02 < abs(bench.arm.servos[2].effort) < 0.6  # the elbow carries the forearm
    bench.torque(False)
    bench.run(1.0)
    assert bench.dynamics.objects()
    assert bench.arm.joints_deg()[2] > 10


def test_a_step_of_two_milliseconds_is_stable_at_double_stiffness() -> None:
    bench = Bench("so101")
    bench.dynamics.place_arm((0.0, 0.0, 0.0, 0.0, 0.0, 20.0))
    bench.torque(True)
    for servo in bench.arm.servos:
        servo.write(Register.P, b"\x20")
    for pan in (60.0, -60.0, 0.0):
        bench.goal(0, pan)
        bench.run(1.0)
        assert bench.arm.joints_deg()[0] == pytest.approx(pan, abs=0.5)
        assert abs(bench.arm.servos[0].velocity) < 20


def test_torque_jumps_to_a_forgotten_goal_at_the_speed_of_a_real_servo() -> None:
    bench = Bench("so101")
    bench.dynamics.place_arm((0.0, -30.0, 0.0, 0.0, 0.0, 20.0))
    for index, value in enumerate((0.0, -30.0, 0.0, 0.0, 0.0, 20.0)):
        bench.goal(index, value)
    bench.goal(0, 90.0)
    bench.run(0.2)
    assert abs(bench.arm.joints_deg()[0]) < 1
    for servo in bench.arm.servos:
        servo.write(Register.TORQUE_ENABLE, b"\x01")
    bench.run(0.2)
    assert 20 < bench.arm.joints_deg()[0] < 60
    bench.run(1.0)
    assert bench.arm.joints_deg()[0] == pytest.approx(90, abs=0.5)


def test_a_stalled_joint_stays_shows_full_load_and_trips() -> None:
    bench = Bench("so101")
    bench.dynamics.place_arm((0.0, -30.0, 0.0, 0.0, 0.0, 20.0))
    bench.torque(True)
    bench.arm.servos[0].stalled = True
    bench.goal(0, 40.0)
    bench.run(0.8)
    assert bench.arm.servos[0].effort > 0.9
    bench.run(2.0)
    assert bench.arm.servos[0].status() & Status.OVERLOAD
    assert abs(bench.arm.joints_deg()[0]) < 0.5


@pytest.mark.parametrize("model", MODELS)
def test_the_jaws_grasp_the_cube_and_lift_it(model: ArmModel) -> None:
    bench = Bench(model)
    bench.torque(True)
    leader = VirtualArm(NOWHERE, default_calibration(model, "leader"), moved=False)
    operator = Operator(leader, bench.dynamics, seed=3, task=Task.PICK)
    highest, on_disc = 0.0, False
    try:
        for step in range(round(20 / DT_S)):
            operator.step(DT_S)
            until(lambda: not operator.thinking, "the operator knows what to do")
            if step % 8 == 0:
                bench.follow(leader.joints_deg())
            bench.dynamics.step(DT_S)
            if operator.cycles:
                break
            objects = bench.dynamics.objects()
            cube, disc = objects["red cube"], objects["blue disc"]
            highest = max(highest, cube[2])
            on_disc = math.dist(cube[:2], disc[:2]) < 0.015 and cube[2] < 0.014
    finally:
        operator.close()
    assert highest > 0.07
    assert on_disc
    assert bench.dynamics.scene_seed != 3  # the table is laid anew for the next cycle


def test_a_table_may_hold_several_discs_and_the_operator_is_told_which() -> None:
    arm = VirtualArm(NOWHERE, default_calibration("so101"), moved=False)
    leader = VirtualArm(NOWHERE, default_calibration("so101", "leader"), moved=False)
    dynamics = Dynamics(SceneModel("so101", discs=("blue", "green"), cubes=("red", "white")), arm, seed=1)
    operator = Operator(leader, dynamics)
    operator.set_task(Task.TOUCH, "green disc")
    doings: list[str] = []
    try:
        for _ in range(round(6 / DT_S)):
            operator.step(DT_S)
            until(lambda: not operator.thinking, "the operator knows what to do")
            if operator.doing not in doings[-1:]:
                doings.append(operator.doing)
    finally:
        operator.close()
    assert "onto the green disc" in doings
    assert not any("blue" in doing for doing in doings)
    assert len(dynamics.objects()) == 4


def test_the_hand_reaches_for_a_disc_from_wherever_it_is_and_stays_there() -> None:
    arm = VirtualArm(NOWHERE, default_calibration("so101"), moved=False)
    leader = VirtualArm(NOWHERE, default_calibration("so101", "leader"), moved=False)
    dynamics = Dynamics(SceneModel("so101", discs=("blue", "green")), arm, seed=1)
    kinematics = Kinematics(dynamics.scene)
    operator = Operator(leader, dynamics)
    try:
        # The second reach begins on the first disc: the hand has to be lifted off the table.
        for disc in ("green disc", "blue disc"):
            operator.reach(disc)
            assert operator.thinking is False
            lowest = math.inf
            for _ in range(round(6 / DT_S)):
                operator.step(DT_S)
                lowest = min(lowest, kinematics.lowest_m(leader.joints_deg()))
            assert operator.doing == "waiting"
            assert math.dist(kinematics.forward(leader.joints_deg())[:2], dynamics.objects()[disc][:2]) < 0.002
            assert lowest > 0
        # A touch that is a little off is corrected without starting over.
        x, y, _ = dynamics.objects()["blue disc"]
        dynamics.place({"blue disc": Pose2(x + 0.02, y)})
        operator.reach("blue disc")
        highest = 0.0
        for _ in range(round(3 / DT_S)):
            operator.step(DT_S)
            highest = max(highest, kinematics.forward(leader.joints_deg())[2])
        assert math.dist(kinematics.forward(leader.joints_deg())[:2], (x + 0.02, y)) < 0.002
        assert highest < 0.02
        with pytest.raises(BadInput, match="no 'red disc'"):
            operator.reach("red disc")
        dynamics.place({"blue disc": Pose2(0.6, 0.0)})
        with pytest.raises(BadInput, match="out of reach"):
            operator.reach("blue disc")
    finally:
        operator.close()
    assert dynamics.scene_seed == 1  # the table is left as it is


def test_a_cube_is_pushed_by_the_arm_and_not_passed_through() -> None:
    bench = Bench("so101")
    kinematics = Kinematics(bench.scene)
    bench.dynamics.place({"red cube": Pose2(0.24, 0.0), "blue disc": Pose2(0.24, 0.15)})
    path = kinematics.line((0.24, -0.06, 0.012), (0.24, 0.06, 0.012))
    bench.dynamics.place_arm(path[0])
    bench.torque(True)
    for pose in path:
        bench.follow(pose)
        bench.run(0.1)
    bench.run(0.5)
    x, y, _ = bench.dynamics.objects()["red cube"]
    assert y > 0.06
    assert x == pytest.approx(0.24, abs=0.03)


@pytest.mark.parametrize("model", MODELS)
def test_the_front_camera_sees_every_object_and_the_wrist_camera_the_table_behind_the_jaws(model: ArmModel) -> None:
    scene = SceneModel(model, discs=("blue", "green"))
    data = mujoco.MjData(scene.model)
    kinematics = Kinematics(scene)
    renderer = mujoco.Renderer(scene.model, 240, 320)
    renderer.enable_segmentation_rendering()

    def pixels(camera: str, body: str) -> int:
        renderer.update_scene(data, camera)
        seen = renderer.render()[..., 0]
        geoms = [
            geom for geom in range(scene.model.ngeom) if scene.model.geom_bodyid[geom] == scene.model.body(body).id
        ]
        return int(np.isin(seen, geoms).sum())

    try:
        for seed in range(6):
            poses = scene.scatter(seed)
            scene.place(data, poses)
            data.qpos[scene.joint_qpos] = to_radians(np.array(REST))
            mujoco.mj_forward(scene.model, data)
            assert all(pixels("front", name) > 20 for name in scene.objects)
            assert all(pixels("front", name) > 50 for name in ("upper_arm", "lower_arm", "gripper"))
            disc = poses["blue disc"]
            above = kinematics.reach((disc.x, disc.y, 0.09))
            assert above
            data.qpos[scene.joint_qpos] = to_radians(np.array(above))
            mujoco.mj_forward(scene.model, data)
            assert pixels("wrist", "blue disc") > 300
            assert pixels("wrist", "gripper") > 300
            assert pixels("wrist", "jaw") > 100
    finally:
        renderer.close()
