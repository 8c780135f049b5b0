"""The composers room: one file per composer, registered where it is defined."""
