"""Composer `mosaic`: several instructions in one example, under a rule that the output obeys (Mosaic-IT)."""

from collections.abc import Iterator
from dataclasses import asdict

from tamis.composers.accepted import chat_format, rendered, sources_of, training_prompts, usable
from tamis.context import Context
from tamis.mosaic.packing import Packing, Row, row_ids
from tamis.mosaic.rules import Sizes, Version
from tamis.mosaic.texts import Mosaic
from tamis.pool import Pool
from tamis.records import Example, Message, Target
from tamis.registry import composer, option


@composer("mosaic", row=106, paper="Mosaic-IT (Li et al., Findings of ACL 2025)")
class MosaicSFT:
    """Put several instructions and their responses into one example, with rules on format, order and what to ignore.

    Rows are the accepted completions (all, in a pool without verdicts) of prompts that are one user message; what they are
    matters, not their order. Every pass takes each row once. A mosaic's rule: always number tags (none once in 11) and with
    probability 1/2 marks around each response; besides, under "both" with equal shares, nothing, an order of the responses (10
    methods) or instructions to ignore (5 methods), whose responses are left out. Numbers stay those of the instructions. The
    rule is written into the prompt. A mosaic of one row has a format alone. The loss lies on the output.

    One epoch over the output of the 4 passes is what the paper trains (lr 2e-5, 3 % warm-up, cosine, batch 128). With sizes
    uniform on 1..10 a pass has 1/5.5 = 18 % of the examples. Counts rows, mosaics, and the examples saved against ordinary
    fine-tuning for as many passes. Each example's metadata says which rows it holds (`row_ids`), the numbers in the order
    shown and the ignored ones (from 1), `strategy`, `rule`, and the `spans` of the responses in the output, which
    `tamis.mosaic.parse_mosaic` reads; its weight is the mean of its completions', its prompt the first row's.

    Dropped: rows of `max_tokens` or more. A row that reaches them with the words of the rule alone is left out of that pass,
    counted. Tokens are those of instruction and output without the chat template.
    """

    sizes: Sizes = option(
        "uniform",
        "law of the rows wanted in a mosaic: U{1..max_rows}, always max_rows, as many as fit"
        ", or max_rows less a draw of a named law",
        source="paper",
    )
    max_rows: int = option(10, "most rows of a mosaic (no limit under sizes 'max')", source="paper", ge=1)
    max_tokens: int = option(
        2000, "instruction and output of a mosaic have fewer tokens than this", source="code", ge=1
    )
    passes: int = option(4, "times that each row is used", source="code", ge=1)
    version: Version = option("both", "rules besides the format: order and mask, one of them, or none", source="code")
    threshold: float = option(0.5, "least score of an accepted completion")

    def compose(self, pool: Pool, ctx: Context) -> Iterator[Example]:
        """Yield the sft examples, pass by pass. Raises ConfigError without a tokenizer and when every row is too long."""
        indices = self._usable(pool, ctx)
        if not indices:
            return
        rows = [Row(pool.prompt(i).text, pool.completions[i].text) for i in indices]
        ids = row_ids(rows)
        packing = Packing(self.sizes, self.max_rows, self.max_tokens, self.passes, self.version, seed=ctx.seed)
        fitting = len(rows)

        def skip(row: int, part: int | None) -> None:
            nonlocal fitting
            if part is not None:
                ctx.count("rows left out of one pass: too long with the words of their rule")
                return
            fitting -= 1
            ctx.drop(pool.completions[indices[row]].id, "max_tokens or more", prompt=pool.prompt(indices[row]).id)

        mosaics = 0
        for made in packing.mosaics(rows, chat_format(ctx).count, skip):
            mosaics += 1
            example = self._example(
                made, [indices[row] for row in made.rows], [ids[row] for row in made.rows], pool, ctx
            )
            if example is not None:
                yield example
        ctx.count("rows", fitting)
        ctx.count("mosaics", mosaics)
        ctx.count("examples saved", fitting * self.passes - mosaics)

    def _usable(self, pool: Pool, ctx: Context) -> list[int]:
        found = []
        for prompt, indices in training_prompts(pool):
            if [m.role for m in prompt.messages] != ["user"] or not prompt.text.strip():
                ctx.drop(prompt.id, "the prompt is not one user message", source=prompt.source)
                continue
            accepted = [i for i in indices if pool.accepted(i, self.threshold)]
            ctx.count("not accepted", len(indices) - len(accepted))
            found += [i for i in accepted if usable(pool.completions[i], "drop", ctx)]
        return found

    def _example(self, made: Mosaic, indices: list[int], ids: list[str], pool: Pool, ctx: Context) -> Example | None:
        messages = (Message("user", made.prompt), Message("assistant", made.output))
        target = rendered(Target(messages), pool.completions[indices[0]].id, ctx)
        if target is None:
            return None
        metadata = {
            "origin": "mosaic",
            "pass": made.part,
            "row_ids": ids,
            "shown_order": [i + 1 for i in made.shown],
            "ignored": [i + 1 for i in made.ignored],
            "strategy": made.rule.strategy,
            "rule": asdict(made.rule),
            "spans": made.spans,
        }
        weight = sum(pool.weight(i) for i in indices) / len(indices)
        sources = tuple(source for i in indices for source in sources_of(pool, i))
        return Example("sft", pool.prompt(indices[0]).id, target, weight=weight, sources=sources, metadata=metadata)
