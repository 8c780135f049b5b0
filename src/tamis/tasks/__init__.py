"""The tasks room: one file per task, registered where it is defined."""
