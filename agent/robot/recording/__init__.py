"""From a journal on disk to an episode in a LeRobotDataset, surviving anything in between."""
