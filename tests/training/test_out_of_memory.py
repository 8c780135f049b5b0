"""Memory that runs out, injected and real: smaller micro-batches, the same mathematics."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tamis.adapters.lora import LoRA
from tamis.objectives.sft import SFT
from tamis.training.config import TuneConfig
from tamis.training.loop import fit

CONFIG = TuneConfig(lr=1e-2, epochs=2, batch_size=8, warmup=0.0, eps=1e-3, micro_batch_tokens=120)


class FailsAt(SFT):
    """Memory runs out at the calls given (0 is the first), before, within or after the forward pass."""

    def __init__(self, calls, place, error):
        object.__setattr__(self, "plan", [set(calls), place, error, 0])

    def loss(self, model, batch):
        calls, place, error, number = self.plan
        self.plan[3] += 1
        if number in calls and place == "before":
            raise error
        loss, metrics = super().loss(model, batch)
        if number in calls and place == "after":
            raise error
        if number in calls and place == "backward":
            loss.register_hook(lambda grad: _raise(error))
        if number in calls and place == "deep":
            next(p for p in model.parameters() if p.requires_grad).register_hook(_once(error))
        return loss, metrics


def _raise(error):
    raise error


def _once(error):
    """A hook that fails the first time it is called: in the backward pass, when other gradients are there already."""
    left = [error]
    return lambda grad: _raise(left.pop()) if left else None


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("place", ["before", "after", "backward", "deep"])
@pytest.mark.parametrize("calls", [(0,), (3,), (1, 6, 15)])
def test_wherever_memory_runs_out_the_weights_are_those_of_an_unbroken_run(llama, examples, place, calls):
    given, events = examples(20), []
    plain, broken = (LoRA(r=2).attach(llama(), 0) for _ in range(2))
    expected = fit(plain, given, SFT(), CONFIG, seed=0)
    found = fit(broken, given, FailsAt(calls, place, MemoryError()), CONFIG, seed=0, on_event=events.append)
    halved = [e for e in events if e["event"] == "out of memory"]
    assert len(halved) == len(calls)
    assert all("memory ran out; going on with" in e["text"] for e in halved)
    assert [row["loss"] for row in found.curve] == pytest.approx([row["loss"] for row in expected.curve], rel=1e-5)
    assert found.trained_tokens == expected.trained_tokens
    ends = weights(broken)
    assert max((ends[name] - value).abs().max().item() for name, value in weights(plain).items()) < 1e-5


REAL = """
    import json, resource, sys
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from tamis.objectives.sft import SFT
    from tamis.records import Example, Target
    from tamis.training.config import TuneConfig
    from tamis.training.loop import fit

    room = int(sys.argv[1])
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 4}
    module = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))
    ids = torch.randint(0, 64, (16, 400)).tolist()
    given = [Example("sft", str(i), Target((), token_ids=tuple(r), weights=(0.0,) + (1.0,) * 399)) for i, r in enumerate(ids)]
    config = TuneConfig(max_steps=2, batch_size=16, micro_batch_tokens=6400, eps=1e-3, warmup=0)
    fit(module, given[:1], SFT(), TuneConfig(max_steps=1, lr=1e-30), seed=0)
    if room:
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
    events = []
    found = fit(module, given, SFT(), config, seed=0, on_event=events.append)
    tokens = [e["micro_batch_tokens"] for e in events if e["event"] == "out of memory"]
    print(json.dumps({"losses": [row["loss"] for row in found.curve], "tokens": tokens}))
"""


def trained_within(room):
    """Train in a process that may take `room` bytes more than it has when training begins; 0 is without a limit."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(REAL), str(room)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS")
def test_memory_that_really_runs_out():
    free, tight = trained_within(0), trained_within(500 * 2**20)
    assert free["tokens"] == []
    assert tight["tokens"] == sorted(tight["tokens"], reverse=True) != []
    assert tight["losses"] == pytest.approx(free["losses"], rel=1e-5)
