"""Where everything of one station lies on the broker: `so/v1/STATION/...`."""

from typing import Final

PREFIX: Final = "so/v1"
"""The version stands in the topic: a controller of another version does not even see these messages."""

ANSWER_TOPIC_MAX_CHARS: Final = 200


class Topics:
    """The topics of one station. Its name is checked by the configuration and holds no `/`, `+` or `#`."""

    def __init__(self, station: str) -> None:
        self.root = f"{PREFIX}/{station}"
        self.online = f"{self.root}/online"
        self.state = f"{self.root}/state"
        self.telemetry = f"{self.root}/telemetry"
        self.event = f"{self.root}/event"
        self.ack = f"{self.root}/ack"
        self.commands = f"{self.root}/cmd/+"

    def command(self, verb: str) -> str:
        return f"{self.root}/cmd/{verb}"

    def verb(self, topic: str) -> str:
        """What a message on a command topic asks for."""
        return topic.removeprefix(f"{self.root}/cmd/")

    def may_answer_on(self, topic: str) -> bool:
        """Whether a response topic is one of this station's own below `ack/`.

        A station that answered anywhere would carry the words of whoever may command it to topics which only the
        station may write, or to the commands of another one.
        """
        return (
            topic.startswith(f"{self.ack}/")
            and len(topic) <= ANSWER_TOPIC_MAX_CHARS
            and topic.isprintable()
            and not {"+", "#"} & set(topic)
        )
