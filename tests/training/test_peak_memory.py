"""The most memory a training takes, in a process of its own: checkpoints and resuming add nothing to it."""

import os
import subprocess
import sys
import textwrap

import pytest

TOLERANCE = 0.03
"""Share of the peak: what the allocator's and the file cache's accidents make."""

TRAINING = """
    import resource, sys
    from pathlib import Path
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from tamis.objectives.sft import SFT
    from tamis.records import Example, Target
    from tamis.training.config import TuneConfig
    from tamis.training.loop import fit

    folder, steps = (Path(sys.argv[1]) if sys.argv[1] else None), int(sys.argv[2])
    torch.manual_seed(0)
    shape = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12}
    module = LlamaForCausalLM(LlamaConfig(vocab_size=1000, **shape))
    given = [Example("sft", str(i), Target((), token_ids=(i, 2, 3) * 40, weights=(0.0,) + (1.0,) * 119)) for i in range(8)]
    config = TuneConfig(max_steps=4, batch_size=2, lr=1e-4, checkpoint_every=1)

    class Stop(Exception):
        pass

    def on_event(event):
        if event["event"] == "checkpoint" and event["text"].startswith(f"checkpoint step-{steps:08d}"):
            raise Stop

    try:
        fit(module, given, SFT(), config, seed=0, folder=folder, on_event=on_event)
    except Stop:
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(folder, steps=0):
    command = [sys.executable, "-c", textwrap.dedent(TRAINING), str(folder), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    return int(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss in kB")
def test_checkpoints_and_resuming_do_not_raise_the_peak(tmp_path):
    """Full fine-tuning of 86 million weights on few tokens: what is saved, 1 GB, outweighs the activations."""
    plain = peak("")
    saving = peak(tmp_path, steps=2)
    resumed = peak(tmp_path)
    assert saving <= plain * (1 + TOLERANCE), (plain, saving)
    assert resumed <= plain * (1 + TOLERANCE), (plain, resumed)
