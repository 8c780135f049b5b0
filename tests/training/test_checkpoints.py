import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from tamis.adapters.lora import LoRA
from tamis.errors import StoreError, TrainingError
from tamis.objectives.sft import SFT
from tamis.training.batches import EpochSource, admit
from tamis.training.checkpoints import Checkpoint, Checkpoints, CurveFile, read
from tamis.training.config import TuneConfig
from tamis.training.loop import fit

CONFIG = TuneConfig(epochs=3, lr=1e-2, batch_size=4, checkpoint_every=3, micro_batch_tokens=60)
"""13 examples in windows of 4: 4 steps an epoch, 12 in all, checkpoints at 3 (mid-epoch), 6 (mid-epoch), 9 and 12."""


class Cut(Exception):
    """The training is cut off here."""


def cut_at(step, event_name="step"):
    def listen(event):
        if event["event"] == event_name and event.get("step", step) == step:
            raise Cut

    return listen


def state_of(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def without_seconds(curve):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in curve]


@pytest.fixture
def unbroken(gpt2, examples, tmp_path):
    module = gpt2(dropout=0.1)
    result = fit(module, examples(13), SFT(), CONFIG, seed=7, folder=tmp_path / "unbroken")
    return module, result, read(Checkpoints(tmp_path / "unbroken" / "checkpoints").found()[0])


@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_resume_equals_unbroken_bit_for_bit(gpt2, examples, tmp_path, unbroken, step):
    """Dropout is on, so the random state counts too."""
    whole, result, last = unbroken
    with pytest.raises(Cut):
        fit(gpt2(dropout=0.1), examples(13), SFT(), CONFIG, seed=7, folder=tmp_path / "cut", on_event=cut_at(step))
    module, events = gpt2(dropout=0.1), []
    again = fit(module, examples(13), SFT(), CONFIG, seed=7, folder=tmp_path / "cut", on_event=events.append)
    assert [e["step"] for e in events if e["event"] == "resumed"] == ([step // 3 * 3] if step >= 3 else [])
    assert_same(state_of(module), state_of(whole))
    resumed = read(Checkpoints(tmp_path / "cut" / "checkpoints").found()[0])
    assert_same(resumed.optimizer, last.optimizer)
    assert_same(resumed.weights, last.weights)
    assert without_seconds(again.curve) == without_seconds(result.curve)
    assert again.trained_tokens == result.trained_tokens
    seconds = [row["seconds"] for row in again.curve]
    assert seconds == sorted(seconds)


def test_without_a_folder_the_result_is_the_same(gpt2, examples, unbroken):
    whole, result, _ = unbroken
    module = gpt2(dropout=0.1)
    memory = fit(module, examples(13), SFT(), CONFIG, seed=7)
    assert_same(state_of(module), state_of(whole))
    assert without_seconds(memory.curve) == without_seconds(result.curve)


def test_resume_after_memory_ran_out_keeps_the_smaller_micro_batch(llama, examples, tmp_path):
    class Cramped(SFT):
        def loss(self, model, batch):
            if batch.input_ids.numel() > 40:
                raise MemoryError
            return super().loss(model, batch)

    def run(folder, on_event=None):
        module = llama()
        result = fit(module, examples(13), Cramped(), CONFIG, seed=7, folder=tmp_path / folder, on_event=on_event)
        return module, result

    whole, _ = run("whole")
    with pytest.raises(Cut):
        run("cut", cut_at(8))
    events = []
    module, _ = run("cut", events.append)
    assert_same(state_of(module), state_of(whole))
    assert not [e for e in events if e["event"] == "out of memory"]


def test_finished_training_is_not_done_again(gpt2, examples, tmp_path, unbroken):
    whole, result, _ = unbroken
    module, events = gpt2(dropout=0.1), []
    again = fit(module, examples(13), SFT(), CONFIG, seed=7, folder=tmp_path / "unbroken", on_event=events.append)
    assert not [e for e in events if e["event"] == "step"]
    assert_same(state_of(module), state_of(whole))
    assert again.curve == result.curve


def test_the_last_k_are_kept(tmp_path, unbroken):
    names = [p.name for p in Checkpoints(tmp_path / "unbroken" / "checkpoints").found()]
    assert names == ["step-00000012", "step-00000009"]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_newest_checkpoint_falls_back(gpt2, examples, tmp_path, unbroken, file, damage):
    whole, _, _ = unbroken
    victim = tmp_path / "unbroken" / "checkpoints" / "step-00000012" / file
    content = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        middle = len(content) // 2
        victim.write_bytes(content[:middle] + (b"" if damage == "cut" else b"\x00" + content[middle + 1 :]))
    module, events = gpt2(dropout=0.1), []
    fit(module, examples(13), SFT(), CONFIG, seed=7, folder=tmp_path / "unbroken", on_event=events.append)
    assert "step-00000012 is damaged" in next(e["text"] for e in events if e["event"] == "damaged checkpoint")
    assert next(e["step"] for e in events if e["event"] == "resumed") == 9
    assert_same(state_of(module), state_of(whole))


@pytest.mark.parametrize(
    "other", [{"seed": 8}, {"config": CONFIG.model_copy(update={"lr": 1e-3})}, {"n": 12}, {"stamp": "other base"}]
)
def test_a_checkpoint_of_another_training_is_refused(gpt2, examples, tmp_path, unbroken, other):
    given = {"seed": 7, "config": CONFIG, "n": 13, "stamp": ""} | other
    with pytest.raises(TrainingError, match="of another training"):
        fit(
            gpt2(dropout=0.1),
            examples(given["n"]),
            SFT(),
            given["config"],
            seed=given["seed"],
            folder=tmp_path / "unbroken",
            stamp=given["stamp"],
        )


def test_an_adapter_s_checkpoint_has_only_the_adapter(llama, examples, tmp_path):
    module = LoRA(r=2).attach(llama(), 0)
    fit(module, examples(13), SFT(), CONFIG, seed=7, folder=tmp_path)
    checkpoint = read(Checkpoints(tmp_path / "checkpoints").found()[0])
    assert checkpoint.weights
    assert all("lora_" in name for name in checkpoint.weights)


def test_a_source_with_state_resumes(llama, examples, tmp_path):
    rows, _ = admit(examples(13), max_length=128, vocabulary=24)

    class Skipping(EpochSource):
        """Leaves out windows while the loss is above the mean so far."""

        seen = ()

        def draw(self, step):
            return super().draw(
                step + sum(self.seen[i] > sum(self.seen) / len(self.seen) for i in range(len(self.seen)))
            )

        def update(self, step, outputs):
            self.seen = (*self.seen, outputs["loss"])

        def state_dict(self):
            return {"seen": list(self.seen)}

        def load_state_dict(self, state):
            self.seen = tuple(state["seen"])

    def run(folder, on_event=None):
        module = llama()
        source = Skipping(rows, 4, 3, 0)
        fit(module, examples(13), SFT(), CONFIG, seed=7, folder=tmp_path / folder, on_event=on_event, source=source)
        return state_of(module)

    whole = run("whole")
    with pytest.raises(Cut):
        run("cut", cut_at(8))
    assert_same(run("cut"), whole)


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    files = Checkpoints(tmp_path)
    tensors = {"w": torch.ones(3)}
    files.save(Checkpoint(5, "d", tensors, tensors))
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".step-00000006.tmp")
    assert files.load("d", print).step == 5
    files.save(Checkpoint(6, "d", tensors, tensors))
    assert files.load("d", print).step == 6


def test_a_checkpoint_that_cannot_be_written_says_what_to_do(llama, examples, tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(StoreError, match="cannot be written") as caught:
        fit(llama(), examples(13), SFT(), CONFIG, seed=7, folder=tmp_path)
    assert "Free space" in str(caught.value)


def test_the_curve_is_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "curve.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 8)) + '{"step": 8, "lo')
    curve = CurveFile(path, write=True)
    assert [row["step"] for row in curve.cut(5)] == [1, 2, 3, 4, 5]
    curve.append({"step": 6})
    curve.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("damage", [b"3\n", b"[]\n", b'{"step": "x"}\n', b'{"loss": 1}\n', b"\xff\n"])
def test_the_curve_ends_before_a_line_that_is_no_row(tmp_path, damage):
    path = tmp_path / "curve.jsonl"
    path.write_bytes(b'{"step": 1}\n' + damage + b'{"step": 3}\n')
    assert CurveFile(path, write=False).cut(5) == [{"step": 1}]


SCRIPT = """
    import sys
    import time
    sys.path.insert(0, sys.argv[1])
    import conftest
    from pathlib import Path
    from test_checkpoints import CONFIG
    from tamis.objectives.sft import SFT
    from tamis.training.loop import fit

    def listen(event):
        print(event.get("step"), flush=True)
        if event.get("step") == 7:
            time.sleep(60)

    module, examples = conftest._gpt2(dropout=0.1), conftest._examples(13)
    fit(module, examples, SFT(), CONFIG, seed=7, folder=Path(sys.argv[2]), on_event=listen)
"""


def test_killed_and_resumed_equals_unbroken(gpt2, examples, tmp_path, unbroken):
    """A process is killed with SIGKILL after step 7, in the middle of an epoch and past two checkpoints."""
    whole, result, last = unbroken
    folder = tmp_path / "killed"
    script = [sys.executable, "-c", textwrap.dedent(SCRIPT), os.path.dirname(__file__), str(folder)]
    process = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.strip() == "7":
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    module, events = gpt2(dropout=0.1), []
    again = fit(module, examples(13), SFT(), CONFIG, seed=7, folder=folder, on_event=events.append)
    assert next(e["step"] for e in events if e["event"] == "resumed") == 6
    assert_same(state_of(module), state_of(whole))
    assert_same(read(Checkpoints(folder / "checkpoints").found()[0]).optimizer, last.optimizer)
    assert without_seconds(again.curve) == without_seconds(result.curve)


def test_killed_while_a_checkpoint_is_written(gpt2, examples, tmp_path, unbroken, monkeypatch):
    """A child is killed inside the second `save`, after the files and before the rename."""
    whole, _, _ = unbroken
    folder = tmp_path / "killed"
    child = os.fork()
    if child == 0:
        import tamis.training.checkpoints as module_of

        publish, saves = module_of.publish, []

        def deadly(temporary, final):
            saves.append(final)
            if len(saves) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            publish(temporary, final)

        module_of.publish = deadly
        fit(gpt2(dropout=0.1), examples(13), SFT(), CONFIG, seed=7, folder=folder)
        os._exit(0)
    until = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < until:
        time.sleep(0.02)
    assert os.WTERMSIG(ended[1]) == signal.SIGKILL
    assert [p.name for p in Checkpoints(folder / "checkpoints").found()] == ["step-00000003"]
    module = gpt2(dropout=0.1)
    fit(module, examples(13), SFT(), CONFIG, seed=7, folder=folder)
    assert_same(state_of(module), state_of(whole))
    assert not list((folder / "checkpoints").glob(".step*"))
