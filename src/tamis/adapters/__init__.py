"""The adapters room: one file per adapter, registered where it is defined."""
