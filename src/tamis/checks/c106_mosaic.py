"""Row 106, data mosaics: several instructions in one example, under rules that the output obeys.

Source: Mosaic-IT (Li et al., Findings of ACL 2025, arXiv 2405.13326). What is gated is exact: the number of examples, the laws
of all draws, the inverse, and that a reader who sees the words of a prompt and the responses alone arrives at its output.
That mosaics tune better is a claim on models that can follow a rule; the training of a nano model on three skills is reported:
it meets the words of rules for the first time, and learning them costs it the skills.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import exact, local, reported
from tamis.context import Context
from tamis.lab import nano
from tamis.models.chat import ChatFormat
from tamis.models.hf import LocalModel
from tamis.mosaic import MASKS, ORDERS, Mosaic, Packing, Row, draw_size, parse_output, write_mosaic
from tamis.mosaic.texts import JOIN
from tamis.mosaic.wordings import MARK_BRACKETS, MARK_WORDS
from tamis.pool import Pool
from tamis.records import Completion, Law, Message, Prompt, Turn
from tamis.registry import build

NAME = "mosaic"
ROW = 106
CLAIM = (
    "Mosaics of 1 to 10 rows cut the examples of a pass to 1/5.5, every mosaic can be taken apart again, and none has a rule "
    "that its output breaks. That they tune better with fewer steps is claimed for models that can follow a rule."
)
SEEDS = (50_106,)

ROWS, PASSES, MOST = 2000, 4, 10
DRAWN = 30_000
TARGET, PARTS, HELDOUT = 0.5, 3, 300
TUNE: dict[str, Any] = {"lr": 5e-4, "epochs": 1.0, "batch_size": 16}
LETTERS = "abcdefgh"
WORDS = ("apple", "Bread", "cloud", "door", "Earth", "field", "glass", "house", "Island", "juice", "kite", "lamp")
INSTRUCTION = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)* q\d{4}")
"""An instruction of the rows of this check, as its reader finds it."""


def rows(rng: np.random.Generator, n: int) -> list[Row]:
    """Return `n` rows of 20 to 60 characters; no instruction contains another."""
    found = []
    for i in range(n):
        words = rng.choice(WORDS, rng.integers(1, 5)).tolist()
        letters = "".join(rng.choice(list("uvwxyz"), rng.integers(2, 16)))
        found.append(Row(f"{' '.join(words)} q{i:04}", f"{letters} {i:04}"))
    return [row if len("".join(row)) >= 20 else row._replace(response=row.response.rjust(20, "u")) for row in found]


RULE = re.compile("order|sequence:|alphabetical|fewest|numbered|ignore|longest|shortest|without a response|not respond")
"""What tells the line of an order or a mask from others."""
MARK = re.compile(
    "|".join(re.escape(f"{a}{w}{b}".lower()) for a, b in MARK_BRACKETS for pair in MARK_WORDS for w in pair)
)


def asked_for(prompt: str, instructions: Sequence[str]) -> list[int]:
    """Return which instructions a prompt wants answered, in order, as its words alone say it (indices from 0)."""
    for instruction in instructions:
        prompt = prompt.replace(instruction, "", 1)
    line = next(filter(RULE.search, prompt.lower().split("\n")), "")
    every = list(range(len(instructions)))
    numbers = [int(n) for n in re.findall(r"\d+", line)]
    if "longest" in line or "shortest" in line:
        ranked = _ranked(instructions, lambda text: text.count(" "), most="longest" in line)
        return sorted(ranked[numbers[0] :])
    if re.search("these instructions|the following instructions", line):
        return [i for i in every if i + 1 not in numbers]
    if numbers:
        return [n - 1 for n in numbers]
    if "numbered" in line:
        parts = {"odd": every[::2], "even": every[1::2]}
        named = re.findall("(odd|even)-numbered", line)
        return parts[named[0]] + parts[named[1]] if len(named) == 2 else parts[{"odd": "even", "even": "odd"}[named[0]]]
    if "alphabetical" in line:
        return sorted(every, key=lambda i: instructions[i].lower(), reverse="reverse" in line)
    if "reverse" in line:
        return every[::-1]
    if "words" in line or "characters" in line:
        most = next(iter(re.findall("fewest|most", line))) == "most"
        return _ranked(instructions, (lambda text: text.count(" ")) if "words" in line else len, most=most)
    return every


def _ranked(instructions: Sequence[str], size: Callable[[str], int], *, most: bool) -> list[int]:
    sizes = [-size(text) if most else size(text) for text in instructions]
    return sorted(range(len(sizes)), key=lambda i: (sizes[i], i))


def obeys(made: Mosaic, answers: Mapping[str, str]) -> bool:
    """Whether the output is what the words of the prompt ask for: who is answered, in which order, under which numbers and
    between which marks."""
    found = list(INSTRUCTION.finditer(made.prompt))
    instructions = [match[0] for match in found]
    tags = [made.rule.number(i + 1) for i in range(len(found))]
    if any(not made.prompt[: match.start()].endswith(tag) for match, tag in zip(found, tags, strict=True)):
        return False
    wanted = [(tags[i], answers[instructions[i]]) for i in asked_for(made.prompt, instructions)]
    frames = [f"{re.escape(tag)}(.*?){re.escape(answer)}(.*?)" for tag, answer in wanted]
    read = re.fullmatch(re.escape(JOIN).join(frames), made.output)
    if read is None:
        return False
    written = {(begin.strip(), end.strip()) for begin, end in zip(read.groups()[::2], read.groups()[1::2], strict=True)}
    named = set(MARK.findall(made.prompt.lower()))
    return len(written) == 1 and {mark.lower() for mark in next(iter(written)) if mark} == named


class World:
    """Rows to pack, mosaics drawn by the thousand, and skills for a nano model to learn."""

    def __init__(self, seed: int, size: int = ROWS, drawn: int = DRAWN) -> None:
        self.seed, self.drawn = seed, drawn
        self.rows = rows(hashing.rng(seed, "rows"), size)
        self.count = ChatFormat(nano.nano_tokenizer(nano.PRINTABLE)).count
        self.skills = Skills(seed)

    @cached_property
    def packed(self) -> list[Mosaic]:
        """The mosaics of four passes."""
        return list(Packing(max_rows=MOST, passes=PASSES, seed=self.seed).mosaics(self.rows, self.count, _none_skipped))


def _none_skipped(row: int, part: int | None) -> None:
    raise AssertionError(f"row {row} was skipped")


def packing(w: World) -> Outcome:
    """Four passes over the rows, sizes uniform on 1..10, taken apart again and read by their words."""
    answers = {row.instruction: row.response for row in w.rows}
    whole = [sorted(row for m in w.packed if m.part == part for row in m.rows) for part in range(PASSES)]
    tagged = [m for m in w.packed if m.rule.tag is not None]
    return {
        "examples a pass": len(w.packed) / PASSES,
        "each row once a pass": float(all(found == list(range(len(w.rows))) for found in whole)),
        "rule obeyed": np.array([float(obeys(m, answers)) for m in w.packed]),
        "inverse": np.array([float(_inverse(m, w.rows)) for m in w.packed]),
        "read back": np.array([float(_read_back(m, w.rows)) for m in tagged]),
        "longest, tokens": float(max(w.count([m.prompt, m.output]).sum() for m in w.packed)),
    }


def _inverse(made: Mosaic, data: Sequence[Row]) -> bool:
    return [made.output[a:b] for a, b in made.spans] == [data[made.rows[i]].response for i in made.shown]


def _read_back(made: Mosaic, data: Sequence[Row]) -> bool:
    read = parse_output(made.output, made.rule, [i + 1 for i in made.shown])
    return read == [data[made.rows[i]].response for i in made.shown]


def draws(w: World) -> Outcome:
    """Many mosaics of uniform sizes: how often each thing is drawn, in standard errors from its share."""
    rng = hashing.rng(w.seed, "draws")
    data = w.rows[:MOST]
    sizes = np.array([draw_size("uniform", MOST, rng) for _ in range(w.drawn)], dtype=np.int64)
    asked, answers = [row.instruction for row in data], [row.response for row in data]
    rules = [write_mosaic(asked[:n], answers[:n], rng).rule for n in sizes.tolist()]
    several = [rule for rule, n in zip(rules, sizes, strict=True) if n > 1]
    by_method = {s: [r.method for r in several if r.strategy == s] for s in ("order", "mask")}
    return {
        "sizes": _furthest(sizes.tolist(), range(1, MOST + 1)),
        "strategies": _furthest([rule.strategy for rule in several], ("format", "order", "mask")),
        "orders": _furthest(by_method["order"], ORDERS),
        "masks": _furthest(by_method["mask"], MASKS),
        "no numbers": _off(sum(rule.tag is None for rule in rules), len(rules), 1 / 11),
        "marks": _off(sum(rule.marks is not None for rule in rules), len(rules), 1 / 2),
        "one row, format alone": float(
            all(r.strategy == "format" for r, n in zip(rules, sizes, strict=True) if n == 1)
        ),
    }


def _off(count: int, n: int, share: float) -> float:
    """Standard errors between a count and its expectation."""
    return abs(count - n * share) / (n * share * (1 - share)) ** 0.5


def _furthest(found: Sequence[Any], known: Any) -> float:
    kinds = list(known)
    return max(_off(sum(x == kind for x in found), len(found), 1 / len(kinds)) for kind in kinds)


@dataclass(frozen=True)
class Skills:
    """Reverse, copy or sort 3 to 5 letters; a nano model that does half of it, and rows to tune it on."""

    seed: int
    size: int = ROWS
    heldout: int = HELDOUT

    @property
    def alphabet(self) -> str:
        """All that rules are written in, too."""
        return nano.PRINTABLE

    def batch(self, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        """Return `n` problems and their solutions."""
        pairs = [self._pair(rng) for _ in range(n)]
        return [p for p, _ in pairs], [s for _, s in pairs]

    def _pair(self, rng: np.random.Generator) -> tuple[str, str]:
        letters = "".join(rng.choice(list(LETTERS), rng.integers(3, 6)))
        skill = str(rng.choice(("reverse", "copy", "sort")))
        return f"{skill} {letters}", {"reverse": letters[::-1], "copy": letters, "sort": "".join(sorted(letters))}[
            skill
        ]

    def all_steps_right(self, problem: str, text: str) -> bool:
        """Whether `text` is the solution."""
        skill, letters = problem.split(" ")
        return text == {"reverse": letters[::-1], "copy": letters, "sort": "".join(sorted(letters))}[skill]

    @cached_property
    def base(self) -> LocalModel:
        """The model that was trained on single problems until it solved half of them."""
        key = ["mosaic skills", self.seed, TARGET]
        pair = nano.base(key, lambda: nano.trained(self, TARGET, seed=self.seed))
        return local(*pair, hashing.digest(nano.VERSION, key))

    def pool(self) -> Pool:
        """The training rows: problems with their solutions."""
        problems, solutions = self.batch(hashing.rng(self.seed, "train"), self.size)
        prompts = [Prompt((Message("user", p),), metadata={"row": i}) for i, p in enumerate(problems)]
        done = [Completion(p.id, (Turn("assistant", s),)) for p, s in zip(prompts, solutions, strict=True)]
        return Pool({p.id: p for p in prompts}, done)

    def singles(self) -> tuple[list[str], list[str]]:
        """Fresh problems, one a prompt."""
        return self.batch(hashing.rng(self.seed, "heldout"), self.heldout)

    def several(self) -> tuple[list[str], list[str]]:
        """Fresh prompts of two or three problems under an order or a mask."""
        rng = hashing.rng(self.seed, "several")
        found: list[Mosaic] = []
        while len(found) < self.heldout:
            made = write_mosaic(*self.batch(rng, int(rng.integers(2, PARTS + 1))), rng)
            found += [made] if made.rule.strategy != "format" else []
        return [m.prompt for m in found], [m.output for m in found]

    def measured(self, model: LocalModel, **more: float) -> Outcome:
        """Return whether the greedy text is right, for single problems and for several under a rule."""
        return {
            "score": self._right(model, *self.singles(), longest=8),
            "several under a rule": self._right(model, *self.several(), longest=160),
            **more,
        }

    def _right(self, model: LocalModel, asked: list[str], right: list[str], *, longest: int) -> np.ndarray:
        prompts = [Prompt((Message("user", text),)) for text in asked]
        law = Law(temperature=0.0, max_new_tokens=longest)
        drawn = model.generate(prompts, law, candidates=[[0]] * len(prompts), seed=self.seed)
        return np.array([c.text == text for c, text in zip(drawn, right, strict=True)], dtype=np.float64)

    def tuned(self, composer: Mapping[str, Any], epochs: float) -> Outcome:
        """Return the base tuned on what a composer makes of the rows."""
        from tamis.training.config import TuneConfig
        from tamis.training.loop import fit

        base = self.base
        examples = list(build("composer", composer).compose(self.pool(), Context(self.seed, base, base.chat)))
        module = build("adapter", "full").attach(base.module(), self.seed)
        config = TuneConfig.build({**TUNE, "epochs": epochs})
        done = fit(module, examples, build("objective", "sft"), config, seed=self.seed)
        return self.measured(local(module, base.tokenizer, "tuned"), steps=float(done.steps))


def base(w: World) -> Outcome:
    """The half-trained nano model."""
    return w.skills.measured(w.skills.base)


def ordinary(w: World) -> Outcome:
    """Ordinary tuning for four epochs."""
    return w.skills.tuned({"accepted_sft": {}}, float(PASSES))


def mosaics(w: World, version: str) -> Outcome:
    """One epoch over mosaics of one to three rows, four passes."""
    options = {"max_rows": PARTS, "max_tokens": nano.CONTEXT - 8, "passes": PASSES, "version": version}
    return w.skills.tuned({"mosaic": options}, 1.0)


ARMS: dict[str, Callable[[World], Outcome]] = {
    "packing": packing,
    "draws": draws,
    "base": base,
    "ordinary": ordinary,
    "mosaic": partial(mosaics, version="both"),
    "mosaic, format alone": partial(mosaics, version="format"),
}


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


def verdict(table: Table) -> list[Figure]:
    """Return the exact gates, the laws of the draws, and what training a nano model gave."""
    examples = table.mean("packing", "examples a pass") / (ROWS / ((MOST + 1) / 2))
    off = abs(examples - 1) <= 0.06
    return [
        Figure("examples a pass / (2000 / 5.5)", "gate", examples, rule="within 6 % of 1", holds=bool(off)),
        _all(table, "each row is used exactly once in a pass", "each row once a pass"),
        _all(table, "the output is what the words of the prompt ask for", "rule obeyed"),
        _all(table, "the spans give every response back", "inverse"),
        _all(table, "numbered outputs are read back as a model's text", "read back"),
        exact("a mosaic of one row has a format alone", table.mean("draws", "one row, format alone") == 1, "always"),
        *(_law(table, name) for name in ("sizes", "strategies", "orders", "masks", "no numbers", "marks")),
        *_training(table),
    ]


def _all(table: Table, label: str, name: str) -> Figure:
    share = table.mean("packing", name)
    return Figure(label, "gate", share, rule="always", holds=bool(share == 1))


def _law(table: Table, name: str) -> Figure:
    worst = float(table.means("draws", name).max())
    return Figure(f"share of {name}: standard errors off", "gate", worst, rule="<= 4", holds=bool(worst <= 4))


def _training(table: Table) -> list[Figure]:
    found = []
    for name, label in (("score", "one problem"), ("several under a rule", "several under a rule")):
        found.append(reported(table, f"nano, {label}: mosaic - ordinary", "mosaic", "ordinary", name))
        found.append(reported(table, f"nano, {label}: mosaic - format alone", "mosaic", "mosaic, format alone", name))
    steps = table.mean("mosaic", "steps") / table.mean("ordinary", "steps")
    return [*found, Figure("nano: steps of mosaic / steps of ordinary", "reported", steps)]
