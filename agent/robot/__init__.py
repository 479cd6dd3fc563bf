"""The hardware side of a station: arm process, camera processes, recorder."""
