"""The judges room: one file per judge, registered where it is defined."""
