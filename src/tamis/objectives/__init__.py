"""The objectives room: one file per objective, registered where it is defined."""
