"""Claim checks: one file per row, `cNNN_name.py`, always the same three parts.

`world(seed)` makes what all arms share, `ARMS` maps names to callables on that world at equal budget, and `verdict(table)`
turns the measured table into figures. A figure is a *gate* (must hold), *reported*, or *gpu* (asserted only on a larger
model). Seeds are fixed beforehand: base seed 50,000 + row.
"""
