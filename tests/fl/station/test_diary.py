"""What a SuperNode prints says how it is. The lines were printed by flwr 1.42; test_contract.py makes it print them."""

from agent.fl.diary import ACTIVATION_REFUSED, Diary

INFO = "\x1b[92mINFO \x1b[0m:      "
WARNING = "\x1b[93mWARNING \x1b[0m:   "
ERROR = "\x1b[91mERROR \x1b[0m:     "


def read(*lines: str) -> Diary:
    diary = Diary()
    for line in lines:
        diary.hear(line + "\n")
    return diary


def test_it_is_online_from_the_moment_it_has_a_number() -> None:
    diary = read(f"{INFO}Starting Flower SuperNode", f"{INFO}SuperNode ID: 7889072358756278839")
    assert diary.node_id == 7889072358756278839
    diary.hear(f"{INFO}SuperNode terminated gracefully.")
    assert diary.node_id is None


def test_it_is_busy_between_a_message_and_its_reply() -> None:
    diary = read(
        f"{INFO}[RUN 6155860050311161952, ROUND 3]",
        f"{INFO}Receiving: train message (ID: d778837cb0f1)",
        f"{INFO}Received successfully",
    )
    assert diary.busy
    assert (diary.run, diary.round, diary.received) == (6155860050311161952, 3, 1)
    diary.hear(f"{INFO}Sending: train message (ID: 5b9943d993f7)")
    assert diary.busy
    diary.hear(f"{INFO}Sent successfully")
    assert not diary.busy
    assert diary.sent == 1


def test_a_message_that_could_not_be_fetched_keeps_it_busy_no_longer() -> None:
    diary = read(f"{INFO}Receiving: train message (ID: d7)", f"{ERROR}Failed to receive message d7: no route")
    assert not diary.busy


def test_one_failed_attempt_is_usual_and_two_are_told() -> None:
    diary = read(f"{WARNING}Connection attempt failed, retrying in 0.89 seconds")
    assert not diary.unreachable
    diary.hear(f"{WARNING}Connection attempt failed, retrying in 5.12 seconds")
    assert diary.unreachable
    assert diary.lost_s > 6
    diary.hear(f"{INFO}Connection successful after 6.01 seconds and 3 tries.")
    assert not diary.unreachable


def test_a_refusal_is_known_by_its_number() -> None:
    diary = read(
        f"{ERROR}Exit Code: 305",
        "Failed to initialize the connection to the SuperLink.",
        "[code: 2004] Failed to activate SuperNode.",
    )
    assert diary.exit_code == 305
    assert diary.refusal == ACTIVATION_REFUSED


def test_trainers_speak_through_it() -> None:
    diary = read('so-agent says {"refused": "not on the list"}', "so-agent says not JSON", 'so-agent says ["odd"]')
    assert diary.take_said() == [{"refused": "not on the list"}]
    assert diary.take_said() == []


def test_what_an_app_prints_changes_nothing() -> None:
    """An app's output comes through the same pipe."""
    assert read("a line of an app", "TRAIN step 4, loss 1.2").node_id is None
