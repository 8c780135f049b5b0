"""The selectors room: one file per selector, registered where it is defined."""
