"""The evaluators room: one file per evaluator, registered where it is defined."""
