"""A thousand stations on one broker: `make fleet-sim`. What the numbers mean stands in docs/mqtt.md."""
