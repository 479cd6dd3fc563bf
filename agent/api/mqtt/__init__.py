"""The station on an MQTT broker: a process of its own that speaks to the daemon like any other client."""
