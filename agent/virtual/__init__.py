"""A station that is not there: servo bus, arm, table, cameras and a scripted operator. Imported by nothing else."""
