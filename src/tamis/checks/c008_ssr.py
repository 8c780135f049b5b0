"""Row 8, selective self-rehearsal: own answers where they are right keep a model nearer to itself than gold answers do.

Source: Gupta et al. 2024, arXiv 2409.04787. Sums and differences of four residues; a base that writes its steps in style 1 and
now and then in style 2, which is the style of gold. It is tuned on sums; differences are what it may forget.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from tamis import hashing
from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import Bench, exact, local, over_seeds, reported
from tamis.lab import nano
from tamis.lab.worlds import ModularSums
from tamis.models.hf import LocalModel
from tamis.pool import Pool
from tamis.records import Example, Message, Prompt, Target, Verdict

NAME = "ssr"
ROW = 8
CLAIM = (
    "Tuned on its own right answers and on gold elsewhere, a model learns the target task as well as by plain SFT, moves less "
    "than half as far from the base (KL), and loses less on a task that it was not tuned on."
)
SEEDS = (50_008, 50_009, 50_010)

TARGET, ROWS, ASKED, KL_PROBLEMS = 0.7, 200, 800, 200
TUNE: dict[str, Any] = {"lr": 5e-4, "max_steps": 75, "batch_size": 8, "schedule": "constant"}
"""75 steps of 8 are 3 passes over 200 rows; arms with fewer rows take as many steps."""


@dataclass(frozen=True)
class Operations:
    """Problems "1+5+4+2=" and "1-5-4-2=" (modulo 6), solved from left to right.

    Style 1 is "1+5=0,0+4=4,4+2=0,#0", style 2 ">150>044>420#0"; `second` of the texts have style 2.
    """

    modulus: int = 6
    terms: int = 4
    second: float = 0.1

    @property
    def alphabet(self) -> str:
        """All characters of problems and solutions."""
        return "0123456789"[: self.modulus] + "+-=,#>"

    def problems(self, rng: np.random.Generator, n: int, sign: str) -> list[str]:
        """Return `n` problems of one operation."""
        return [sign.join(map(str, row)) + "=" for row in rng.integers(0, self.modulus, (n, self.terms)).tolist()]

    def solution(self, problem: str, style: int) -> str:
        """Return the solution of a problem in a style."""
        sign = problem[1]
        total, *rest = map(int, problem[:-1].split(sign))
        steps = []
        for x in rest:
            after = (total + x if sign == "+" else total - x) % self.modulus
            steps.append(f"{total}{sign}{x}={after}," if style == 1 else f">{total}{x}{after}")
            total = after
        return "".join(steps) + f"#{total}"

    def right(self, problem: str, text: str) -> bool:
        """Whether the part after the last "#" is the answer."""
        found = re.findall(r"#(\d+)", text)
        return bool(found) and found[-1] == self.solution(problem, 1)[-1]

    def batch(self, rng: np.random.Generator, n: int) -> tuple[list[str], list[str]]:
        """Return `n` problems, sums and differences alike, and a solution of each."""
        problems = [self.problems(rng, 1, "+-"[i])[0] for i in rng.integers(0, 2, n)]
        return problems, [
            self.solution(p, 2 if u < self.second else 1) for p, u in zip(problems, rng.random(n), strict=True)
        ]


WORLD = Operations()


def half_trained(seed: int) -> "nano.Pair":
    """Return a nano model trained on both operations until it solves a share `TARGET` of sums."""
    module, tokenizer = nano.nano_module(WORLD.alphabet, seed=seed)
    dev = WORLD.problems(hashing.rng(seed, "dev"), 200, "+")

    def accuracy(module: Any) -> float:
        texts = nano.greedy_texts(module, tokenizer, dev, 21)
        return float(np.mean([WORLD.right(p, t) for p, t in zip(dev, texts, strict=True)]))

    nano.pretrain(module, tokenizer, WORLD.batch, accuracy, TARGET, seed=seed)
    return module, tokenizer


class World:
    """A base, sums to tune on with gold of style 2, and other sums and differences to measure on."""

    def __init__(self, seed: int) -> None:
        key = ["operations", WORLD, seed, TARGET]
        base = local(*nano.base(key, lambda: half_trained(seed)), hashing.digest(nano.VERSION, key))
        rng = hashing.rng(seed, "problems")
        sums = list(dict.fromkeys(WORLD.problems(rng, 4000, "+")))[: ROWS + ASKED]
        train = [_prompt(p, WORLD.solution(p, 2)) for p in sums[:ROWS]]
        others = list(dict.fromkeys(WORLD.problems(rng, 4000, "-")))[: ASKED + KL_PROBLEMS]
        self.sums, self.differences = sums[ROWS:], others[:ASKED]
        self.on = Bench(ModularSums(), seed, base, tuple(train), ())
        self.kept = [base.chat.render(_answered(p)) for p in others[ASKED:]]
        self.answers = cache(self._answers)

    def _answers(self) -> Pool:
        """The base's greedy answers to the training problems, judged by what stands behind "#"."""
        greedy = {"n": 1, "temperature": 0.0, "max_new_tokens": self.on.longest}
        return self.on.judge(self.on.sample({"temperature": greedy}, self.on.train))

    def tuned(self, examples: Sequence[Example]) -> Outcome:
        """Return what the base tuned on the examples measures."""
        return self.measured(self.on.tune(examples, **TUNE).model)

    def measured(self, model: LocalModel) -> Outcome:
        """Return accuracy on sums and on differences by problem, and the KL from the base by problem."""
        module, tokenizer = model.module().eval(), self.on.base.tokenizer
        found = {}
        for name, problems in (("target", self.sums), ("other", self.differences)):
            texts = nano.greedy_texts(module, tokenizer, problems, self.on.longest)
            found[name] = np.array([WORLD.right(p, t) for p, t in zip(problems, texts, strict=True)], dtype=float)
        return {**found, "KL": divergence(self.on.base.module().eval(), module, self.kept)}


def world(seed: int) -> World:
    """Return the world of a seed."""
    return World(seed)


def divergence(base: Any, tuned: Any, targets: Sequence[Target]) -> np.ndarray:
    """Return KL(base || tuned) of the next-token distributions at trained tokens, mean of each target, (N,) in nats.

    All targets have one length.
    """
    import torch

    ids = torch.tensor([t.token_ids for t in targets])
    with torch.inference_mode():
        own, other = (m(input_ids=ids).logits[:, :-1].double().log_softmax(-1) for m in (base, tuned))
    trained = np.array([t.weights for t in targets])[:, 1:] > 0
    nats = (own.exp() * (own - other)).sum(-1).numpy()
    return np.asarray((nats * trained).sum(axis=1) / trained.sum(axis=1))


def _prompt(problem: str, gold: str) -> Prompt:
    return Prompt((Message("user", problem),), (gold,))


def _answered(problem: str) -> Target:
    return Target((Message("user", problem), Message("assistant", WORLD.solution(problem, 1))))


def self_or_gold(w: World, pool: Pool) -> list[Example]:
    """Return the method's rows."""
    return w.on.compose({"self_or_gold": {}}, pool)


def sft(w: World) -> Outcome:
    """All gold."""
    return w.tuned(gold_rows(w))


def gold_rows(w: World) -> list[Example]:
    """Return the rows of plain SFT."""
    return w.on.compose({"accepted_sft": {"gold": "always"}}, Pool({p.id: p for p in w.on.train}, []))


def ssr(w: World) -> Outcome:
    """Own answers where right, gold elsewhere; with what the base thinks of both kinds of targets."""
    rows = self_or_gold(w, w.answers())
    found = w.tuned(rows)
    for source in ("self", "gold"):
        made = [e.metadata for e in rows if e.metadata["source"] == source]
        shares = {f"share {source}": len(made) / len(rows)}
        means = {f"log-prob of {source} targets": float(np.mean([m["base_logprob"] for m in made])) if made else 0.0}
        found = {**found, **shares, **means}
    return {**found, "_exact": float(composed_exactly(w))}


def self_only(w: World) -> Outcome:
    """Own right answers; wrong rows are left out."""
    return w.tuned(w.on.compose({"accepted_sft": {}}, w.answers()))


def random_swap(w: World) -> Outcome:
    """The same number of rows replaced by own answers, whether right or not."""
    pool = w.answers()
    order = hashing.rng(w.on.seed, "swap").permutation(len(pool))
    verdicts = [replace(v, score=pool.verdicts[j].score, id="") for v, j in zip(pool.verdicts, order, strict=True)]
    return w.tuned(self_or_gold(w, Pool(pool.prompts, pool.completions, verdicts)))


def noisy(w: World, false_right: float, false_wrong: float) -> Outcome:
    """Verdicts flipped at these rates, of wrong and of right answers."""
    pool = w.answers()
    verdicts = [_flipped(v, false_right, false_wrong, w.on.seed) for v in pool.verdicts]
    return w.tuned(self_or_gold(w, Pool(pool.prompts, pool.completions, verdicts)))


def _flipped(verdict: Verdict, false_right: float, false_wrong: float, seed: int) -> Verdict:
    right = verdict.score == 1
    slips = hashing.rng(seed, "noise", verdict.prompt_id).random() < (false_wrong if right else false_right)
    return replace(verdict, score=float(right != slips), id="")


ARMS: dict[str, Callable[[World], Outcome]] = {
    "base": lambda w: w.measured(w.on.base),
    "SFT": sft,
    "SSR": ssr,
    "self only": self_only,
    "random swap": random_swap,
    "false right 0.1": partial(noisy, false_right=0.1, false_wrong=0.0),
    "false right 0.3": partial(noisy, false_right=0.3, false_wrong=0.0),
    "false wrong 0.1": partial(noisy, false_right=0.0, false_wrong=0.1),
    "false wrong 0.3": partial(noisy, false_right=0.0, false_wrong=0.3),
}


def composed_exactly(w: World) -> bool:
    """Whether 10 rows with 6, 0 and 10 right answers give that many own answers in order, and gold elsewhere."""
    prompts = w.on.train[:10]
    made = [c for c in w.answers().completions if c.prompt_id in {p.id for p in prompts} and c.finish_reason == "stop"]
    own, gold = {c.prompt_id: c.text for c in made}, {p.id: p.references[0] for p in prompts}
    fits = []
    for right in (6, 0, 10):
        chosen = {p.id for p in prompts[:right]}
        said = [Verdict(c.prompt_id, (c.id,), "known", float(c.prompt_id in chosen)) for c in made]
        rows = self_or_gold(w, Pool({p.id: p for p in prompts}, made, said))
        wanted = [own[p.id] if p.id in chosen and p.id in own else gold[p.id] for p in prompts]
        fits.append([e.target.messages[-1].content for e in rows] == wanted)
    return all(fits)


def verdict(table: Table) -> list[Figure]:
    """Return the figures: the three gates of the claim, the exact rows, and the arms that are reported."""
    ratio = float((table.means("SSR", "KL") / table.means("SFT", "KL")).max())
    target = table.difference("SSR", "SFT", "target")
    drops = {arm: 100 * (table.mean("base", "other") - table.mean(arm, "other")) for arm in ("SFT", "SSR")}
    gain = table.mean("SSR", "log-prob of self targets") - table.mean("SSR", "log-prob of gold targets")
    noise = [f"false {kind} {rate}" for kind in ("right", "wrong") for rate in (0.1, 0.3)]
    return [
        Figure("KL from the base, SSR / SFT, worst seed", "gate", ratio, rule="< 0.5", holds=ratio < 0.5),
        table.gate_above("other task: SSR - SFT", "SSR", "SFT", "other"),
        Figure("target task: SSR - SFT", "gate", *target, rule=">= -0.01", holds=target.value >= -0.01),
        exact("rows with 6, 0 and 10 of 10 right", table.mean("SSR", "_exact") == 1, "own answers and gold in order"),
        over_seeds(table, "other task: SSR - SFT, seeds resampled", "SSR", "SFT", "other"),
        *(Figure(f"drop on the other task, points: {arm}", "reported", value) for arm, value in drops.items()),
        Figure("log-probability under the base: self - gold targets", "reported", gain),
        *(
            reported(table, f"target task: {arm} - SSR", arm, "SSR", "target")
            for arm in ("self only", "random swap", *noise)
        ),
    ]
