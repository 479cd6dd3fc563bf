"""Somebody who reads everything that a fleet publishes, cheaply: counts messages and how old they are.

    python -m benchmarks.fleet_sim.dashboard FOLDER PORT [--plain]

Prints one JSON line a second: messages and bytes of that second, and the age of telemetry in ms (p99).
"""

import argparse
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.control_bench.stats import percentile

SAMPLE_EVERY = 10
"""Reading the time of every message would cost more than receiving it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("port", type=int)
    parser.add_argument("--plain", action="store_true")
    asked = parser.parse_args()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="dashboard", protocol=mqtt.MQTTv5)
    if not asked.plain:
        tls = asked.folder / "tls"
        client.tls_set(str(tls / "ca.crt"), str(tls / "dashboard.crt"), str(tls / "dashboard.key"))
    count, size, ages = 0, 0, []

    def on_connect(client: mqtt.Client, *_: Any) -> None:
        client.subscribe([(f"so/v1/+/{topic}", 0) for topic in ("telemetry", "state", "event")])

    def on_message(client: mqtt.Client, userdata: Any, message: mqtt.MQTTMessage) -> None:
        nonlocal count, size
        count += 1
        size += len(message.payload)
        if count % SAMPLE_EVERY == 0 and message.topic.endswith("telemetry"):
            at = datetime.fromisoformat(json.loads(message.payload)["at"]).timestamp()
            ages.append((time.time() - at) * 1000)

    client.on_connect, client.on_message = on_connect, on_message
    client.reconnect_delay_set(1, 1)
    client.connect_async("localhost", asked.port)
    due = time.monotonic() + 1
    while True:
        if client.loop(timeout=0.2) != mqtt.MQTT_ERR_SUCCESS:
            time.sleep(0.2)
            try:
                client.reconnect()
            except OSError:
                continue
        if time.monotonic() >= due:
            due += 1
            age = percentile(ages, 99) if ages else None
            print(json.dumps({"messages": count, "bytes": size, "age_p99_ms": age}), flush=True)
            count, size, ages = 0, 0, []


if __name__ == "__main__":
    main()
