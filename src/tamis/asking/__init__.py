"""Asking a model questions and reading its answers: what every judge, critic and writer that is a model is built from.

`templates` holds the wording, `reading` turns text into values, `ask` puts them together and keeps what was answered
(`tamis.replies`).
"""

from tamis.asking.ask import GREEDY, Answer, Question, ask, label_probabilities
from tamis.asking.reading import read_json, read_label, read_number
from tamis.asking.templates import Template, template

__all__ = [
    "GREEDY",
    "Answer",
    "Question",
    "Template",
    "ask",
    "label_probabilities",
    "read_json",
    "read_label",
    "read_number",
    "template",
]
