"""What stations and server say to each other in a round. Nothing but adapters, counts and metrics leaves a station.

train       server -> station   ArrayRecord `arrays`: the global adapter, fp16
                                ConfigRecord `config`: see `Terms`
            station -> server   ArrayRecord `arrays`: the *change* that training made, encoded (compression.py)
                                MetricRecord `metrics`: num-examples (rows really used), steps, asked, train-loss,
                                preempted (0 or 1), seconds
evaluate    server -> station   as above
            station -> server   MetricRecord `metrics`: num-examples (held-out rows), held-out-loss
query       station -> server   MetricRecord `metrics`: ready (0 or 1), rows, episodes, held-out
query.statistics                MetricRecord `metrics`: count, and mean and M2 of the joints; only with consent

A station that does not take part in a round replies with an Error whose code is one of `Decline`; the round goes on
without it. After the last round the adapter is sent to every node (`final` in the config), again and again for
`deliver-s` seconds to those that were away, and each keeps it in `brief.candidates`.
"""

from enum import IntEnum


class Decline(IntEnum):
    """Codes of error replies; Flower's own are below 1000."""

    BUSY = 1001  # the arm is needed, and too little was done to be worth sending
    NO_POLICY = 1002  # the base policy is not in this station's library
    NO_DATA = 1003  # no dataset with consent fits, or no episode is left to learn from
    NOT_AGREED = 1004  # beyond what this station's brief, or settings.py, allow
    FAILED = 1005  # the training itself went wrong: a loss that is no number, too little memory
    SPENT = 1006  # this station's privacy budget does not last for another round
    OTHER_VERSION = 1007  # server and station speak different versions of this exchange
