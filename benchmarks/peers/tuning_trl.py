"""trl's SFTTrainer on the windows of benchmarks/tuning.py: one process for one setting, run in trl's own environment.

Arguments: a JSON file of the training (see `tuning.py: Setup`), and a JSON object of SFTConfig options that differ from its
defaults. A job `windows=n` trains from the given adapter for n optimizer steps.
"""

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from harness import serve
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

warnings.filterwarnings("ignore")


class Steps(TrainerCallback):
    """When each optimizer step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *arguments: Any, **more: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **more: Any) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


class Counted:
    """A collator that counts the tokens of the examples that each batch trains, padding not."""

    def __init__(self, inner: Any, padding_free: bool) -> None:
        self.inner, self.padding_free = inner, padding_free
        self.tokens: list[int] = []

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.inner(features)
        whole = self.padding_free or "attention_mask" not in batch
        self.tokens.append(int(batch["input_ids"].numel() if whole else batch["attention_mask"].sum()))
        return batch


def train(windows: int, curve: bool = False) -> dict[str, Any]:
    """Train `windows` steps; return seconds and tokens of all but the first, and the losses where asked for."""
    model = AutoModelForCausalLM.from_pretrained(setup["model"], dtype=torch.float32)
    model = PeftModel.from_pretrained(model, setup["adapter"], is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(setup["model"])
    count = len(setup["examples"]) if options.get("packing") else windows * setup["window"]
    data = Dataset.from_list(setup["examples"][:count])
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        chosen = {"per_device_train_batch_size": 8, "train_sampling_strategy": "sequential", **options}
        chosen.setdefault("gradient_accumulation_steps", setup["window"] // chosen["per_device_train_batch_size"])
        config = SFTConfig(
            output_dir=folder,
            max_steps=windows,
            learning_rate=setup["lr"],
            lr_scheduler_type="constant",
            max_grad_norm=setup["clip"],
            weight_decay=0.0,
            bf16=False,
            use_cpu=True,
            completion_only_loss=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **chosen,
        )
        trainer = SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer, callbacks=[steps])
        trainer.data_collator = counted = Counted(trainer.data_collator, trainer.padding_free)
        trainer.train()
    first, all_ = (n * chosen["gradient_accumulation_steps"] for n in (1, windows))
    answer = {"seconds": steps.ends[-1] - steps.ends[0], "tokens": sum(counted.tokens[first:all_])}
    return {**answer, "losses": steps.losses} if curve else answer


setup = json.loads(Path(sys.argv[1]).read_text())
options = json.loads(sys.argv[2])
serve(train)
