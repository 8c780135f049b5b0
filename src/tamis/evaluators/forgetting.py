"""What tuning on one task cost elsewhere: accuracy by task, and the distance from the untuned model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tamis import hashing
from tamis.errors import ConfigError, DataError, nearest
from tamis.evaluators import outcomes, stats
from tamis.metrics import Draw, Metric, View
from tamis.records import Completion, Law, Message, Prompt, Target
from tamis.registry import evaluator, option

KL_LAW = Law(temperature=1.0)


@evaluator(
    "forgetting",
    row=8,
    paper="Selective Self-Rehearsal (Gupta et al. 2024, arXiv 2409.04787)",
    needs=("scoring", "tokens"),
)
class Forgetting:
    """Accuracy on each other task, their mean, and KL(untuned || measured) per token; compare before and after tuning.

    The other tasks are those that held-out prompts name (`Prompt.task`), without `target`. A completion is right when its score
    is at least 0.5; the mean weighs tasks alike. The drop is before - after (`drops`).

    KL: on one answer of the untuned model to each of these prompts, drawn at temperature 1, the mean over tokens of
    r - 1 - ln r with r = p_measured / p_untuned, in nats: never negative, and its expectation is the KL of the next-token
    distributions at these positions (our choice of signal and estimator). 0 for the untuned model itself.

    Raises ConfigError when nothing was judged or a target task has no prompt, DataError when no other task is left.
    """

    asks = True

    target: tuple[str, ...] = option((), "tasks that were tuned on, which are left out; none: all prompts are others")
    max_new_tokens: int = option(256, "longest completion, in tokens", ge=1)

    def draws(self) -> Sequence[Draw]:
        """Ask for one greedy completion per prompt."""
        return (Draw(Law(temperature=0.0, max_new_tokens=self.max_new_tokens)),)

    def measure(self, view: View) -> list[Metric]:
        """Return the accuracy on each other task, their mean, and where the untuned model can be asked the KL."""
        prompts = self._others(view.prompts)
        pool, rows = outcomes.drawn(replace(view, prompts=prompts), *self.draws())
        by_task: dict[str, dict[str, float]] = {}
        for prompt_id, row in rows.items():
            task = pool.prompts[prompt_id].task
            by_task.setdefault(task, {})[prompt_id] = float(outcomes.right(pool, row[0]))
        metrics = []
        for task, per_item in sorted(by_task.items()):
            interval = stats.wilson(int(sum(per_item.values())), len(per_item))
            notes = outcomes.counts(pool, {i: rows[i][:1] for i in per_item})
            name = f"accuracy: {task or 'no name'}"
            metrics.append(Metric(name, *interval, n=len(per_item), per_item=per_item, unit="share", notes=notes))
        if len(by_task) > 1:
            metrics.append(_mean(by_task, outcomes.counts(pool, rows)))
        return metrics if view.ctx.model is None else [*metrics, self._divergence(prompts, view)]

    def _others(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        tasks = {p.task for p in prompts}
        for name in self.target if prompts else ():
            if name not in tasks:
                raise ConfigError(
                    f"no held-out prompt is of the task '{name}'", where="forgetting.target", hint=nearest(name, tasks)
                )
        others = sorted((p for p in prompts if p.task not in self.target), key=lambda p: p.id)
        if not others:
            raise DataError(
                "there is no held-out prompt of another task",
                hint="Forgetting shows on other tasks: add held-out prompts of some.",
            )
        return others

    def _divergence(self, prompts: Sequence[Prompt], view: View) -> Metric:
        base, law = view.ctx.model, replace(KL_LAW, max_new_tokens=self.max_new_tokens)
        drawn = base.generate(prompts, law, candidates=[[0]] * len(prompts), seed=view.ctx.seed, sampler="evaluate")
        answers = [c for c in drawn if c.finish_reason != "error" and c.token_ids]
        by_id = {p.id: p for p in prompts}
        targets = [_target(by_id[c.prompt_id], c, base.chat) for c in answers]
        nats = divergences(base, view.model, targets)
        sums, tokens = np.array([row.sum() for row in nats]), np.array([len(row) for row in nats])
        ids = [c.prompt_id for c in answers]
        interval = stats.bootstrap_ratio(sums, tokens, rng=hashing.rng("forgetting", ids))
        return Metric(
            "KL from the untuned model",
            *interval,
            n=len(ids),
            per_item=dict(zip(ids, (sums / tokens).tolist(), strict=True)),
            unit="nats per token",
            higher_is_better=False,
            notes={"tokens": int(tokens.sum())},
        )


def divergences(base: Any, tuned: Any, targets: Sequence[Target]) -> list[np.ndarray]:
    """Return r - 1 - ln r at the trained tokens of each rendered target, float64, r = p_tuned / p_base."""
    ids = [t.token_ids for t in targets]
    pairs = zip(base.logprobs(ids), tuned.logprobs(ids), targets, strict=True)
    found = []
    for own, other, target in pairs:
        gap = (other.astype(np.float64) - own)[np.array(target.weights) > 0]
        found.append(np.expm1(gap) - gap)
    return found


def drops(base: Mapping[str, float], tuned: Mapping[str, float]) -> dict[str, float]:
    """Return base - tuned of each benchmark, in points (scores are shares), and their mean as "mean".

    Raises ConfigError unless both name the same benchmarks, at least one.
    """
    if not base or set(base) != set(tuned):
        raise ConfigError(
            f"drops need the same benchmarks on both sides, not {sorted(base)} and {sorted(tuned)}",
            hint="Evaluate both models on the same tasks.",
        )
    found = {name: 100 * (base[name] - tuned[name]) for name in sorted(base)}
    return {**found, "mean": float(np.mean(list(found.values())))}


def _target(prompt: Prompt, answer: Completion, chat: Any) -> Target:
    """Return a sampled answer as rendered tokens: those that were sampled, its end only where it was."""
    ids = answer.token_ids
    ended = answer.finish_reason == "stop" and ids[-1] in chat.end_ids
    messages = (*prompt.messages, Message("assistant", answer.text))
    return chat.render(Target(messages, ended=ended, target_ids=ids[:-1] if ended else ids))


def _mean(by_task: Mapping[str, Mapping[str, float]], notes: Mapping[str, float | int | str]) -> Metric:
    """Return the mean of the tasks' accuracies. Items are weighed so that their mean is that of the tasks."""
    total = sum(map(len, by_task.values()))
    weighed = {i: v * total / (len(row) * len(by_task)) for row in by_task.values() for i, v in row.items()}
    rng = hashing.rng("forgetting", "mean", sorted(weighed))
    draws = [_resampled(list(row.values()), rng) for row in by_task.values()]
    value = float(np.mean([np.mean(list(row.values())) for row in by_task.values()]))
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    bounds = min(value, float(low)), max(value, float(high))
    return Metric("accuracy: mean of tasks", value, *bounds, n=total, per_item=weighed, unit="share", notes=notes)


def _resampled(values: list[float], rng: np.random.Generator, resamples: int = 10_000) -> np.ndarray:
    return np.asarray(rng.binomial(len(values), np.mean(values), resamples) / len(values))
