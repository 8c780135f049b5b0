"""transformers' side of the sampling benchmark: `generate(num_return_sequences=n)` on left-padded batches, in float32."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from harness import serve
from transformers import AutoModelForCausalLM


def main() -> None:
    """Serve jobs with the model in the folder named first, padding with the token named second."""
    module = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, local_files_only=True).eval()
    pad = int(sys.argv[2])

    def work(prompts: list[list[int]], candidates: int, limit: int, ends: list[int], batch: int) -> Mapping[str, Any]:
        """Sample `batch` prompts at a time, in order of length; count tokens up to and including the end token."""
        ids, total = sorted(prompts, key=len), 0
        for start in range(0, len(ids), batch):
            part = ids[start : start + batch]
            width = max(map(len, part))
            made = module.generate(
                input_ids=torch.tensor([[pad] * (width - len(row)) + row for row in part]),
                attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part]),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=limit,
                num_return_sequences=candidates,
                pad_token_id=pad,
                eos_token_id=ends,
            )[:, width:]
            stopped = torch.isin(made, torch.tensor(ends))
            total += int(torch.where(stopped.any(1), stopped.int().argmax(1) + 1, made.shape[1]).sum())
        return {"tokens": total}

    serve(work)


if __name__ == "__main__":
    main()
