"""Data mosaics: several instructions and their responses in one example, under a rule that the output obeys.

Row 106: Mosaic-IT (Li et al., Findings of ACL 2025, arXiv 2405.13326). `packing` decides which rows go together, `rules` what
order and mask do to them, `wordings` how a rule is said, `texts` writes a mosaic and reads one back.
"""

from tamis.mosaic.packing import Packing, Row
from tamis.mosaic.rules import MASKS, ORDERS, draw_size
from tamis.mosaic.texts import Mosaic, Rule, parse_mosaic, parse_output, write_mosaic
from tamis.mosaic.wordings import DEFAULT, Wordings

__all__ = [
    "DEFAULT",
    "MASKS",
    "ORDERS",
    "Mosaic",
    "Packing",
    "Row",
    "Rule",
    "Wordings",
    "draw_size",
    "parse_mosaic",
    "parse_output",
    "write_mosaic",
]
