"""Priority sampling: different completions in the order of a model's confidence, by a best-first walk of its token tree.

Row 96 (Grubisic et al. 2024, arXiv 2402.18734; no official code was found). Greedy decoding leaves at every position the
tokens it did not take. They are branches; the best of them is decoded greedily next, and leaves branches of its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from tamis.errors import ConfigError, ModelError

Prefix = tuple[int, ...]
Laws = Callable[[Sequence[Prefix]], Iterable[np.ndarray]]
"""The next-token probabilities (V,) float64 after each of some prefixes (the prompt is not among their tokens)."""
Allowed = Callable[[Prefix, int], bool]
"""Whether prefix + token can be completed; for the end token, whether the prefix is complete."""


class Found(NamedTuple):
    """A completion. `coverage` and `bound` are as of its emission, see `PrioritySearch`."""

    tokens: Prefix
    """The end token included, where it was taken."""
    logprobs: tuple[float, ...]
    """Of each token under the model."""
    priority: float
    """Natural logarithm of the branch's priority."""
    branch_depth: int
    """Tokens up to the branching one, itself included; 0 for the first completion, which is greedy decoding."""
    coverage: float
    bound: float

    @property
    def logprob(self) -> float:
        """Log-probability of the whole completion."""
        return math.fsum(self.logprobs)


@dataclass
class _Path:
    """A completion that grows; `score` is the log-probability of its tokens."""

    tokens: list[int]
    logprobs: list[float]
    score: float
    dead: bool = False

    def add(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.score += logprob


class _Node(NamedTuple):
    """A position of a path, and the tokens not taken there, best first."""

    path: _Path
    depth: int
    score: float
    tokens: list[int]
    logprobs: list[float]


class _Branch(NamedTuple):
    """An entry of the heap: highest priority first, then the lower depth, then the smaller prefix."""

    order: float
    depth: int
    prefix: Prefix
    score: float
    node: _Node | None
    rank: int


class PrioritySearch:
    """Iterates over different completions, the most confident branch first; each is yielded as soon as it is decoded.

    A branch is a prefix whose last token greedy decoding did not take. `priority` "path": the probability of the whole
    prefix; "token": that of its last token alone (a literal reading of the paper's words; which one its authors ran is not
    known). Ties: the shorter prefix, then the smaller token ids. A node of the tree holds its untaken tokens in order and
    has only the best of them in the heap, which pops in the order of a heap of all; as n branches are popped at most, n
    tokens of a node are enough, or `branch_k` - 1, where only its `branch_k` best (allowed) ones count. No node is
    evaluated twice.

    `coverage`: probability of all completions so far. `bound`: the largest probability of a prefix that is not expanded; with
    `branch_k` None, every completion that is likelier has been emitted. `stop_mass` ends the search at this coverage (ours).
    Completions that reach `max_new_tokens` are emitted without an end. `frontier` best branches are decoded together:
    faster, in another order; from 2 on nothing but uniqueness and `bound` is promised.

    With `allowed`, only allowed tokens are followed or become branches, at the model's own probabilities (not renormalised,
    which would order by how narrow the constraint is). What is not complete at `max_new_tokens`, or has no allowed token of
    positive probability, is counted in `dropped`; it is one of the n tries, so the cost stays bounded.
    `exhausted`: the whole tree was walked before n completions. `forward_passes`: nodes evaluated.

    Raises ConfigError for settings out of range, ModelError for probabilities that are not finite or do not sum to 1 (1e-4).
    """

    def __init__(
        self,
        laws: Laws,
        n: int,
        eos: int,
        max_new_tokens: int,
        *,
        allowed: Allowed | None = None,
        priority: Literal["path", "token"] = "path",
        branch_k: int | None = None,
        frontier: int = 1,
        stop_mass: float | None = None,
    ) -> None:
        least = {"n": n, "max_new_tokens": max_new_tokens, "frontier": frontier, "branch_k": branch_k}
        for name, value in least.items():
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more", where="priority search")
        if priority not in ("path", "token"):
            raise ConfigError(f"there is no priority '{priority}'", where="priority search", hint="path or token.")
        if stop_mass is not None and not 0 < stop_mass <= 1:
            raise ConfigError(f"stop_mass is {stop_mass}; it lies in (0, 1]", where="priority search")
        self.laws, self.n, self.eos, self.max_new_tokens = laws, n, eos, max_new_tokens
        self.allowed, self.by_path, self.frontier, self.stop_mass = allowed, priority == "path", frontier, stop_mass
        self._kept = n + 1 if branch_k is None else branch_k
        self._heap: list[_Branch] = []
        self.forward_passes = self.dropped = 0
        self.exhausted = False

    def __iter__(self) -> Iterator[Found]:
        self._heap = [_Branch(0.0, 0, (), 0.0, None, 0)]
        self.forward_passes = self.dropped = tried = 0
        coverage = 0.0
        while self._heap and tried < self.n:
            popped = [self._pop() for _ in range(min(self.frontier, self.n - tried)) if self._heap]
            tried += len(popped)
            for i, (branch, path) in enumerate(zip(popped, self._decode(popped), strict=True)):
                if not self._complete(path):
                    self.dropped += 1
                    continue
                coverage += math.exp(path.score)
                left = [b.score for b in (*popped[i + 1 :], *self._heap)]
                bound = math.exp(max(left, default=-math.inf))
                tokens, logprobs = tuple(path.tokens), tuple(path.logprobs)
                yield Found(tokens, logprobs, -branch.order, branch.depth, coverage, bound)
                if self.stop_mass is not None and coverage >= self.stop_mass:
                    return
        self.exhausted = not self._heap and tried - self.dropped < self.n

    def _pop(self) -> _Branch:
        branch = heappop(self._heap)
        if branch.node is not None:
            self._push(branch.node, branch.rank + 1)
        return branch

    def _push(self, node: _Node, rank: int) -> None:
        if rank < len(node.tokens):
            prefix = (*node.path.tokens[: node.depth], node.tokens[rank])
            logprob = node.logprobs[rank]
            order = -self._priority(node.score, logprob)
            heappush(self._heap, _Branch(order, len(prefix), prefix, node.score + logprob, node, rank))

    def _priority(self, score: float, logprob: float) -> float:
        return score + logprob if self.by_path else logprob

    def _decode(self, branches: Sequence[_Branch]) -> list[_Path]:
        """Decode all branches greedily to their ends, side by side."""
        paths = [_opened(branch) for branch in branches]
        while active := [path for path in paths if self._goes_on(path)]:
            laws = self.laws([tuple(path.tokens) for path in active])
            self.forward_passes += len(active)
            for path, law in zip(active, laws, strict=True):
                self._step(path, law)
        return paths

    def _goes_on(self, path: _Path) -> bool:
        return not (path.dead or len(path.tokens) >= self.max_new_tokens or self.eos in path.tokens[-1:])

    def _complete(self, path: _Path) -> bool:
        if path.dead or self.eos in path.tokens[-1:]:
            return not path.dead
        return self.allowed is None or self.allowed(tuple(path.tokens), self.eos)

    def _step(self, path: _Path, law: np.ndarray) -> None:
        """Take the best token and leave the others as branches."""
        _check(law, path.tokens)
        best = self._best(tuple(path.tokens), law)
        if not best:
            path.dead = True
            return
        logs = {token: math.log(law[token]) for token in best}
        greedy, *rest = best
        rest.sort(key=lambda token: (-self._priority(path.score, logs[token]), token))
        self._push(_Node(path, len(path.tokens), path.score, rest, [logs[token] for token in rest]), 0)
        path.add(greedy, logs[greedy])

    def _best(self, prefix: Prefix, law: np.ndarray) -> list[int]:
        """Return the `_kept` likeliest tokens that may follow, best first."""
        usable = np.flatnonzero(law > 0)
        if self.allowed is None and len(usable) > self._kept:
            least = np.partition(law[usable], -self._kept)[-self._kept]
            usable = usable[law[usable] >= least]
        ordered = usable[np.argsort(-law[usable], kind="stable")].tolist()
        allowed = self.allowed
        return list(islice((t for t in ordered if allowed is None or allowed(prefix, t)), self._kept))


def _opened(branch: _Branch) -> _Path:
    if branch.node is None:
        return _Path([], [], 0.0)
    logprobs = [*branch.node.path.logprobs[: branch.node.depth], branch.node.logprobs[branch.rank]]
    return _Path(list(branch.prefix), logprobs, branch.score)


def _check(law: np.ndarray, tokens: Sequence[int]) -> None:
    if not (abs(law.sum() - 1) <= 1e-4 and law.min() >= 0):
        raise ModelError(
            f"the next-token probabilities sum to {law.sum():.6g} (least: {law.min():.3g}); they must be a law",
            where=f"after the tokens {list(tokens[-8:])}",
            hint="NaN comes from a model that overflows: load it in float32 or bfloat16.",
        )


@dataclass(frozen=True)
class PrioritySet:
    """What `priority_search` found, n or fewer, in the order of emission; logarithms are natural.

    `logprobs` float64 (n,) of whole sequences and `priorities` float64 (n,) are logarithms; `branch_depth` int64 (n,),
    `coverage` and `bound` float64 (n,) as in `Found`; the rest as in `PrioritySearch`.
    """

    sequences: list[Prefix]
    logprobs: np.ndarray
    priorities: np.ndarray
    branch_depth: np.ndarray
    coverage: np.ndarray
    bound: np.ndarray
    forward_passes: int
    dropped: int
    exhausted: bool


def priority_search(
    next_probs: Callable[[Prefix], np.ndarray],
    n: int,
    eos: int,
    max_new_tokens: int,
    allowed: Allowed | None = None,
    *,
    priority: Literal["path", "token"] = "path",
    branch_k: int | None = None,
    frontier: int = 1,
    stop_mass: float | None = None,
) -> PrioritySet:
    """Return what a `PrioritySearch` finds where `next_probs` gives the next-token probabilities (V,) after a prefix."""
    search = PrioritySearch(
        lambda prefixes: [next_probs(prefix) for prefix in prefixes],
        n,
        eos,
        max_new_tokens,
        allowed=allowed,
        priority=priority,
        branch_k=branch_k,
        frontier=frontier,
        stop_mass=stop_mass,
    )
    found = list(search)
    return PrioritySet(
        [f.tokens for f in found],
        np.array([f.logprob for f in found], dtype=np.float64),
        np.array([f.priority for f in found], dtype=np.float64),
        np.array([f.branch_depth for f in found], dtype=np.int64),
        np.array([f.coverage for f in found], dtype=np.float64),
        np.array([f.bound for f in found], dtype=np.float64),
        search.forward_passes,
        search.dropped,
        search.exhausted,
    )
