"""The station's status as Prometheus metrics, made at every scrape from what the status says then."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CollectorRegistry, CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest

from agent.modes import Mode


def exposition(status: Mapping[str, Any]) -> bytes:
    """In the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(status))
    return generate_latest(registry)


class _Collector:
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from station(self._status)
        yield from arm(self._status.get("arm"), self._status.get("servos"))
        yield from cameras(self._status.get("cameras") or {})
        yield from recorder(self._status.get("recorder"))
        yield from policy(self._status.get("policy"))


def _gauge(name: str, text: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield GaugeMetricFamily(name, text, value)


def _counter(name: str, text: str, value: float | None) -> Iterator[Metric]:
    if value is not None:
        yield CounterMetricFamily(name, text, value)


def station(status: Mapping[str, Any]) -> Iterator[Metric]:
    about = GaugeMetricFamily("so_station_info", "Which station this is.", labels=("station", "version", "config_hash"))
    about.add_metric((status["station"], status["version"], status["config_hash"]), 1)
    yield about
    yield GaugeMetricFamily("so_uptime_seconds", "Since the agent started.", status["uptime_s"])
    modes = GaugeMetricFamily("so_mode", "1 for the mode that the station is in.", labels=("mode",))
    for mode in Mode:
        modes.add_metric((mode,), float(status["mode"] == mode))
    yield modes
    yield from _gauge("so_recording", "1 while a recording session runs.", float(status.get("recording") is not None))
    yield from _gauge("so_task", "1 while a task is under way.", float(status.get("task") is not None))
    yield from _gauge("so_control_taken", "1 while somebody has control.", float(status.get("lease") is not None))
    up = GaugeMetricFamily("so_process_up", "1 while the process runs.", labels=("process",))
    restarts = CounterMetricFamily("so_process_restarts", "Restarts since the agent started.", labels=("process",))
    for name, child in status["children"].items():
        up.add_metric((name,), float(child["pid"] is not None))
        restarts.add_metric((name,), child["restarts"])
    yield from (up, restarts)


def arm(report: Mapping[str, Any] | None, servos: Mapping[str, Any] | None) -> Iterator[Metric]:
    if report is None:
        return
    yield from _gauge("so_bus_connected", "1 while the follower's servos answer.", float(report["bus_connected"]))
    yield from _gauge("so_leader_connected", "1 while the leader's servos answer.", float(report["leader_connected"]))
    yield from _gauge("so_torque_on", "1 while the follower's torque is on.", float(report["torque_on"]))
    yield from _counter("so_control_ticks", "Turns of the control loop.", report["ticks"])
    yield from _counter("so_bus_errors", "Reads that failed.", report["bus_errors"])
    yield from _counter("so_bus_reconnects", "Times that the bus was opened again.", report["reconnects"])
    yield from _counter("so_limited_ticks", "Turns in which the safety filter changed the action.", report["limited"])
    if loop := report.get("loop"):
        yield from _gauge("so_control_rate_hertz", "Turns of the control loop a second.", loop["rate_hz"])
        yield from _counter("so_control_overruns", "Turns that were skipped.", loop["overruns"])
        error = GaugeMetricFamily(
            "so_control_period_error_seconds", "How far turns are from their time.", labels=("quantile",)
        )
        for quantile, key in (("0.5", "p50"), ("0.99", "p99"), ("1", "max")):
            error.add_metric((quantile,), loop[f"period_error_{key}_ms"] / 1000)
        yield error
    for name, text, key in (
        ("so_servo_temperature_celsius", "Temperature of the servo.", "temperature_c"),
        ("so_servo_voltage_volts", "Supply voltage at the servo.", "voltage_v"),
        ("so_servo_load_percent", "Load, of stall torque.", "load_pct"),
    ):
        family = GaugeMetricFamily(name, text, labels=("joint",))
        for joint, servo in (servos or {}).items():
            if servo[key] is not None:
                family.add_metric((joint,), servo[key])
        yield family


def cameras(found: Mapping[str, Any]) -> Iterator[Metric]:
    streaming = GaugeMetricFamily("so_camera_streaming", "1 while new frames come.", labels=("camera",))
    rate = GaugeMetricFamily("so_camera_fps", "Distinct frames a second.", labels=("camera",))
    age = GaugeMetricFamily("so_camera_age_seconds", "Age of the newest distinct frame.", labels=("camera",))
    for name, camera in found.items():
        streaming.add_metric((name,), float(camera["state"] == "streaming"))
        rate.add_metric((name,), camera.get("fps") or 0.0)
        if camera["age_ms"] is not None:
            age.add_metric((name,), camera["age_ms"] / 1000)
    yield from (streaming, rate, age)


def recorder(report: Mapping[str, Any] | None) -> Iterator[Metric]:
    if report is None:
        return
    yield from _gauge("so_episodes", "Episodes in the dataset.", report["episodes"])
    yield from _gauge("so_disk_free_bytes", "Free where episodes are kept.", report["free_bytes"])


def policy(report: Mapping[str, Any] | None) -> Iterator[Metric]:
    if report is None:
        return
    yield from _gauge("so_policy_delay_p95_seconds", "From observation to chunk.", report["delay_p95_s"])
    yield from _gauge("so_policy_inference_seconds", "The last prediction alone.", report["inference_s"])
    if execution := report.get("execution"):
        yield from _gauge("so_queue_depth", "Actions that lie ahead.", execution["depth"])
        yield from _gauge("so_starved_ticks", "Turns without an action, of this task.", execution["starved_ticks"])
        yield from _gauge("so_seam", "Step where the last chunks meet, degrees or percent.", execution["seam"])
