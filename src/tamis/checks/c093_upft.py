"""Row 93, UPFT: tuning on the first tokens of a model's own answers moves it toward its majority prefix.

Source: Ji et al., NeurIPS 2025, arXiv 2503.02875. The paper's accuracy claim does not show on models of 0.1M parameters,
whose later tokens suffer when 40 full traces are all that holds them; it is reported here and asserted on larger models.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np

from tamis.checks.harness import Figure, Outcome, Table
from tamis.checks.sums import Bench, Spec, Tuned, bench, exact, over_seeds, reported
from tamis.context import Context
from tamis.lab.nano import PRINTABLE
from tamis.lab.scripted import ScriptedModel
from tamis.lab.worlds import StyledSums
from tamis.models.hf import LocalModel
from tamis.pool import Pool
from tamis.prefixes import structure_split
from tamis.records import Example, Message, Prompt, total_cost
from tamis.registry import build

NAME = "upft"
ROW = 93
CLAIM = (
    "Tuning on two-token prefixes of single unfiltered samples raises the share of the majority prefix (A in one world, B "
    "in the other) at the counted cost. It helps only where the majority prefix is the good one. The paper's accuracy claim "
    "does not show at this scale and is asserted on larger models only."
)
SEEDS = (50_093, 50_094, 50_095)

TARGET = 0.93
QUESTIONS, HELDOUT = 400, 800
PREFIX, RATIO, TEMPERATURE = 2, 0.1, 0.7
TUNE: dict[str, Any] = {"lr": 5e-4, "epochs": 2.0, "batch_size": 8, "schedule": "constant"}


class World:
    """Two worlds of styled sums: A the majority of pre-training (`good`), and B (`bad`); a base for each."""

    def __init__(self, good: Bench, bad: Bench) -> None:
        self.good, self.bad = good, bad
        self.traces = cache(self._traces)

    def _traces(self) -> Pool:
        """One full trace of each question."""
        options = {"n": 1, "temperature": TEMPERATURE, "max_new_tokens": self.good.longest}
        return self.good.sample({"temperature": options}, self.good.train)


def world(seed: int) -> World:
    """Return the world of a seed."""
    good, bad = (
        bench(StyledSums(share=share), seed, TARGET, size=QUESTIONS, heldout=HELDOUT, vocab=PRINTABLE)
        for share in (0.65, 0.35)
    )
    return World(good, bad)


def prefixes(on: Bench, temperature: float = TEMPERATURE) -> Pool:
    """Return prefixes of most questions and full traces of the structure set, by the base."""
    options = {"prefix_tokens": PREFIX, "structure_ratio": RATIO, "max_new_tokens": on.longest}
    return on.sample({"prefix": {**options, "temperature": temperature}}, on.train)


def base(w: World, majority: str) -> Outcome:
    """The pre-trained model."""
    on = w.good if majority == "A" else w.bad
    return measured(on, on.base)


def upft(w: World) -> Outcome:
    """UPFT in the world where A is the majority; with its exact counts."""
    pool = prefixes(w.good)
    examples = w.good.compose({"prefix": {}}, pool)
    exact_parts = {"_expected tokens": expected_tokens(w), "_stray gradient": stray_gradient(w.good, pool, examples)}
    return {**spent(w.good, pool, w.good.tune(examples, **TUNE)), **exact_parts}


def upft_bad(w: World) -> Outcome:
    """UPFT in the world where B is the majority."""
    return _plain_upft(w.bad, {"prefix": {}}, TEMPERATURE)


def upft_hot(w: World) -> Outcome:
    """UPFT on samples at temperature 1: self-imitation, which leaves the expected share at temperature 1 as it is."""
    return _plain_upft(w.good, {"prefix": {}}, 1.0)


def upft_without_sentence(w: World) -> Outcome:
    """UPFT with the plain question as the training prompt of prefixes, too."""
    return _plain_upft(w.good, {"accepted_sft": {"truncated": "prefix"}}, TEMPERATURE)


def _plain_upft(on: Bench, composer: Spec, temperature: float) -> Outcome:
    pool = prefixes(on, temperature)
    return spent(on, pool, on.tune(on.compose(composer, pool), **TUNE))


def sft_on_traces(w: World) -> Outcome:
    """SFT on one full unfiltered trace of each question."""
    examples = w.good.compose({"accepted_sft": {"truncated": "prefix"}}, w.traces())
    return spent(w.good, w.traces(), w.good.tune(examples, **TUNE))


def rft(w: World) -> Outcome:
    """SFT on the first right one of 16 labelled tries of each question."""
    options = {"n": 16, "temperature": TEMPERATURE, "max_new_tokens": w.good.longest}
    pool = w.good.judge(w.good.sample({"temperature": options}, w.good.train))
    kept = w.good.select({"first_accepted": {"k": 1}}, pool)
    return spent(w.good, pool, w.good.tune(w.good.compose({"accepted_sft": {}}, kept), **TUNE))


ARMS: dict[str, Callable[[World], Outcome]] = {
    "base": partial(base, majority="A"),
    "sft on full traces": sft_on_traces,
    "upft": upft,
    "upft, no task sentence": upft_without_sentence,
    "upft at T=1": upft_hot,
    "rft, 16 tries": rft,
    "base, B majority": partial(base, majority="B"),
    "upft, B majority": upft_bad,
}


def measured(on: Bench, model: LocalModel) -> Outcome:
    """Return accuracy at the sampling temperature, and the share of A there and at temperature 1, by held-out question.

    The share is the exact probability that an answer opens with A.
    """
    logits = model.next_token_logits([on.base.chat.prompt_ids(p.messages) for p in on.heldout]).astype(np.float64)
    letter = on.base.tokenizer.convert_tokens_to_ids("A")
    return {
        "accuracy": on.scores(model, TEMPERATURE),
        "share of A": _softmax(logits / TEMPERATURE)[:, letter],
        "share of A at T=1": _softmax(logits)[:, letter],
    }


def _softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def spent(on: Bench, pool: Pool, tuned: Tuned) -> Outcome:
    """Return what a tuned model measures, and the tokens sampled for it and trained on in an epoch."""
    sampled, trained = total_cost(pool.completions).sampled_tokens, tuned.fit.trained_tokens / TUNE["epochs"]
    return {**measured(on, tuned.model), "sampled tokens": float(sampled), "trained tokens": trained}


def expected_tokens(w: World) -> float:
    """Return sum over prefix questions of min(t, length) + sum over the structure set of length, end tokens included.

    Counted on the full traces, which share their random numbers with the prefixes; sampled and trained tokens alike.
    """
    structure = structure_split([p.id for p in w.good.train], RATIO, w.good.seed)
    lengths = {c.prompt_id: len(c.token_ids) for c in w.traces().completions}
    return float(sum(n if i in structure else min(PREFIX, n) for i, n in lengths.items()))


def stray_gradient(on: Bench, pool: Pool, examples: Sequence[Example]) -> float:
    """Return the share of positions whose logits have a gradient where they should not, or have none where they should.

    Of the prefix examples among `examples`: the positions that predict the sampled tokens should, no others.
    """
    cut = [e for e in examples if e.metadata["origin"] == "prefix:cut"]
    sampled = {c.id: len(c.token_ids) for c in pool.completions}
    pushed = np.abs(logit_gradient(on, cut)).max(axis=2) > 0
    wanted = np.zeros_like(pushed)
    for row, example in enumerate(cut):
        first = len(on.base.chat.prompt_ids(example.target.messages[:-1])) - 1
        wanted[row, first : first + min(PREFIX, sampled[example.sources[0]])] = True
    return float((pushed != wanted).mean())


def logit_gradient(on: Bench, examples: Sequence[Example]) -> np.ndarray:
    """Return the gradient of the objective's loss at all logits of the base, (B, L, V) float32."""
    import torch

    from tamis.training.batches import admit, collate

    module = on.base.module()
    rows, _ = admit(examples, max_length=512, vocabulary=module.config.vocab_size)
    batch = collate(rows, packed=False)
    with torch.no_grad():
        logits = module(**batch.inputs()).logits
    logits.requires_grad_()
    build("objective", "sft").loss(Fixed(logits), batch)[0].backward()
    return np.asarray(logits.grad)


class Fixed:
    """Stands for a model whose logits are given: what the gradient at the logits is measured on."""

    def __init__(self, logits: Any) -> None:
        self.logits = logits

    def __call__(self, **inputs: Any) -> Any:
        """Return the logits, whatever the inputs."""
        return SimpleNamespace(logits=self.logits)

    def get_output_embeddings(self) -> None:
        """Return None: there is no output layer apart from the logits."""


def sampling_share(ratio: float, tries: int) -> float:
    """Return the tokens UPFT samples (t = 8, traces of 200 tokens, 100 questions) as a share of `tries` full passes."""
    prompts = [Prompt((Message("user", str(i)),)) for i in range(100)]
    model = ScriptedModel(1.0, right=lambda prompt, draw: "x" * 200)
    ctx = Context(ROW, model, shared={"ids": tuple(p.id for p in prompts)})
    specs: list[Spec] = [
        {"prefix": {"prefix_tokens": 8, "structure_ratio": ratio}},
        {"temperature": {"n": tries, "temperature": TEMPERATURE}},
    ]
    ours, full = (total_cost(build("sampler", spec).sample(prompts, ctx)).sampled_tokens for spec in specs)
    return ours / full


def verdict(table: Table) -> list[Figure]:
    """Return the figures: the shares, the exact counts, and the accuracies that small models do not settle."""
    rise = ("upft", "base", "share of A")
    fall = ("base, B majority", "upft, B majority", "share of A")
    return [
        table.gate_above("share of A rises where A is the majority", *rise),
        table.gate_above("share of A falls where B is the majority", *fall),
        *exact_figures(table),
        over_seeds(table, "rise, seeds resampled", *rise),
        over_seeds(table, "fall, seeds resampled", *fall),
        reported(table, "upft at T=1: change of the share at T=1", "upft at T=1", "base", "share of A at T=1"),
        reported(table, "upft, no task sentence: rise", "upft, no task sentence", "base", "share of A"),
        *(on_gpu(table, other) for other in ("base", "sft on full traces", "rft, 16 tries")),
    ]


def on_gpu(table: Table, other: str) -> Figure:
    """Return how much more accurate UPFT is than `other`: a claim on larger models."""
    return Figure(f"accuracy: upft - {other}", "gpu", *table.difference("upft", other, "accuracy"))


def exact_figures(table: Table) -> list[Figure]:
    """Return the exact parts: gradient, tokens trained and sampled, and the sampling cost of the paper's setting."""
    expected = table.means("upft", "_expected tokens")
    stray = table.mean("upft", "_stray gradient")
    trained, sampled = (table.means("upft", f"{what} tokens") for what in ("trained", "sampled"))
    rule = "sum of min(t, length) + traces"
    return [
        exact("gradient at the logits of the prefix and nowhere else", stray == 0, "all positions"),
        exact("trained tokens of an epoch", bool((trained == expected).all()), rule),
        exact("sampled tokens", bool((sampled == expected).all()), rule),
        percent("sampling against RFT with 16 tries, p = 0.1", sampling_share(0.1, 16), 0.85),
        percent("sampling against one full pass, p = 0.1", sampling_share(0.1, 1), 13.6),
        percent("sampling against RFT with 16 tries, p = 0.02", sampling_share(0.02, 16), 0.37),
    ]


def percent(label: str, share: float, said: float) -> Figure:
    """Return a gate on a share of tokens, in percent, that must be exactly what the count gives."""
    value = round(100 * share, 10)
    return Figure(f"{label} (%)", "gate", value, rule=f"= {said}", holds=value == said)
