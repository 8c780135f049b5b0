"""The samplers room: one file per sampler, registered where it is defined."""
