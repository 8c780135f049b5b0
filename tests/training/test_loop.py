import multiprocessing
import os
import socket
from collections.abc import Sequence

import pytest
import torch

from tamis.adapters.lora import LoRA
from tamis.errors import TrainingError
from tamis.objectives.sft import SFT
from tamis.records import Example, Target
from tamis.training.batches import admit, collate
from tamis.training.config import TuneConfig
from tamis.training.loop import fit
from tamis.training.world import World

CONFIG = TuneConfig(lr=1e-2, epochs=1, batch_size=8, warmup=0.0, weight_decay=0.1, eps=1e-3)
"""A large epsilon keeps Adam from blowing up rounding in gradients near 0, so that weights can be compared closely."""


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def furthest(one, other):
    return max((one[name] - other[name]).abs().max().item() for name in one)


def reference(module, windows, config, steps):
    """Window by window, one padded batch each, as one would write it by hand."""
    groups = [
        {"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    losses = []
    for step, rows in enumerate(windows):
        batch = collate(rows, packed=False)
        logits = module(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.input_ids[:, 1:], reduction="none")
        loss = (nll * batch.weights[:, 1:]).sum() / batch.weights.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = config.lr_at(step, steps)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"micro_batch_tokens": 1},
        {"micro_batch_tokens": 70},
        {"batching": "pack"},
        {"batching": "pack", "micro_batch_tokens": 64},
        {"gradient_checkpointing": True},
    ],
)
def test_windows_are_one_big_batch_however_they_are_cut(llama, examples, change):
    """21 examples in windows of 8: the last window of each epoch is ragged."""
    given = examples(21)
    module, by_hand = llama(1), llama(1)
    config = CONFIG.model_copy(update=change)
    result = fit(module, given, SFT(), config, seed=3)
    rows = {r.example.id: r for r in admit(given, max_length=128, vocabulary=24)[0]}
    windows = [[rows[e.id] for e in window] for window in windows_of(given, config, 3)]
    assert [len(w) for w in windows] == [8, 8, 5]
    losses = reference(by_hand, windows, config, 3)
    assert [row["loss"] for row in result.curve] == pytest.approx(losses, abs=1e-6, rel=1e-6)
    assert furthest(weights(module), weights(by_hand)) < 1e-6
    assert result.trained_tokens == sum(r.trained for r in rows.values())


def windows_of(given: Sequence[Example], config, seed):
    """The windows that `fit` draws, from the documented rule alone."""
    from tamis.hashing import derive_seed, rng

    order = rng(derive_seed(seed, "data"), "epoch", 0).permutation(len(given))
    picked = [given[i] for i in order]
    return [picked[i : i + config.batch_size] for i in range(0, len(picked), config.batch_size)]


def test_gradient_of_a_cut_window_is_that_of_the_whole(llama, examples):
    """One step of plain gradient size: the norm before clipping is the true window's."""
    given = examples(13)
    norms = []
    for tokens in (10_000, 40, 1):
        config = TuneConfig(max_steps=1, batch_size=13, micro_batch_tokens=tokens, clip=None)
        norms.append(fit(llama(2), given, SFT(), config, seed=0).curve[0]["grad_norm"])
    assert norms == pytest.approx([norms[0]] * 3, rel=1e-5)


def test_clipping_uses_the_window_s_gradient(llama, examples):
    given, config = examples(8), TuneConfig(max_steps=1, batch_size=8, clip=1e-3, eps=1.0, warmup=0, lr=1.0)
    free = config.model_copy(update={"clip": None})
    moved = []
    for chosen in (config, free):
        module = llama(2)
        before = weights(module)
        row = fit(module, given, SFT(), chosen, seed=0).curve[0]
        moved.append(furthest(before, weights(module)))
    assert row["grad_norm"] > 1e-2
    assert moved[0] < moved[1] / 10


def test_norms_and_biases_do_not_decay(gpt2, examples):
    module = gpt2()
    every = list(module.parameters())
    before = weights(module)

    class Still:
        def weight(self, batch):
            return 1.0

        def loss(self, model, batch):
            return sum((p * 0.0).sum() for p in every), {}

    fit(module, examples(4), Still(), TuneConfig(max_steps=1, lr=0.1, weight_decay=0.5, warmup=0), seed=0)
    after = weights(module)
    for name, value in before.items():
        expected = value if value.ndim < 2 else value * (1 - 0.1 * 0.5)
        assert torch.allclose(after[name], expected), name


def test_training_learns_and_reports(llama, examples):
    events, given = [], examples(20)
    result = fit(llama(), given, SFT(), TuneConfig(epochs=30, lr=1e-2), seed=0, on_event=events.append)
    assert result.curve[-1]["loss"] < 0.5 * result.curve[0]["loss"]
    steps = [e for e in events if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(1, 61))
    assert all(e["total"] == 60 for e in steps)
    assert all(e.get("text") for e in events if e["event"] != "step")
    assert [row["trained_tokens"] for row in result.curve] == sorted(row["trained_tokens"] for row in result.curve)
    assert set(result.curve[0]) == {"step", "loss", "lr", "grad_norm", "trained_tokens", "seconds"}


def test_metrics_are_means_over_the_window(llama, examples):
    class Counting(SFT):
        def loss(self, model, batch):
            loss, _ = super().loss(model, batch)
            return loss, {"ones": batch.weights.sum()}

    config = TuneConfig(max_steps=2, micro_batch_tokens=30)
    curve = fit(llama(), examples(20), Counting(), config, seed=0).curve
    assert [row["ones"] for row in curve] == pytest.approx([1.0, 1.0])


def test_same_seed_same_weights_other_seed_other_weights(gpt2, examples):
    ends = []
    for seed in (1, 1, 2):
        module = gpt2(dropout=0.2)
        torch.manual_seed(len(ends))
        fit(module, examples(20), SFT(), CONFIG, seed=seed)
        ends.append(weights(module))
    assert furthest(ends[0], ends[1]) == 0
    assert furthest(ends[0], ends[2]) > 0


def test_global_randomness_is_left_alone(llama, examples):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fit(llama(7), examples(4), SFT(), TuneConfig(max_steps=2), seed=0)
    torch.manual_seed(5)
    module = llama(5)
    torch.manual_seed(5)
    fit(module, examples(4), SFT(), TuneConfig(max_steps=2), seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_only_the_adapter_moves(llama, examples):
    module = LoRA(r=2).attach(llama(), 0)
    before = weights(module)
    fit(module, examples(8), SFT(), CONFIG, seed=0)
    moved = {name for name, value in weights(module).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert not module.training


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gradient_checkpointing_does_not_change_an_adapter_s_training(llama, examples, dropout):
    curves = []
    for on in (False, True):
        module = LoRA(r=4, dropout=dropout).attach(llama(), 0)
        config = CONFIG.model_copy(update={"gradient_checkpointing": on})
        curves.append([row["loss"] for row in fit(module, examples(16), SFT(), config, seed=0).curve])
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)


def test_refused_examples_are_counted_and_the_rest_trains(llama, examples):
    good, events = examples(6), []
    no_weight = Example("sft", "n", Target((), token_ids=(1, 2), weights=(0.0, 0.0)))
    long = Example("sft", "l", Target((), token_ids=(1,) * 200, weights=(0.0,) + (1.0,) * 199))
    result = fit(llama(), [*good, no_weight, long], SFT(), CONFIG, seed=0, on_event=events.append)
    assert [(r.example_id, r.reason) for r in result.refused] == [
        (no_weight.id, "no trained token"),
        (long.id, "longer than 128 tokens"),
    ]
    assert "2 of 8 examples" in next(e["text"] for e in events if e["event"] == "refused")


@pytest.mark.parametrize("given", [[], [Example("sft", "n", Target((), token_ids=(1, 2), weights=(0.0, 0.0)))]])
def test_nothing_to_train_on(llama, given):
    with pytest.raises(TrainingError, match="none of the") as caught:
        fit(llama(), given, SFT(), CONFIG, seed=0)
    assert "there are none" in str(caught.value) or "no trained token (1)" in str(caught.value)


def test_nothing_that_moves(llama, examples):
    module = llama().requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter"):
        fit(module, examples(4), SFT(), CONFIG, seed=0)


class Poisoned(SFT):
    """Loss that goes bad at a step."""

    def __init__(self, step, poison):
        object.__setattr__(self, "state", [0, step, poison])

    def loss(self, model, batch):
        loss, metrics = super().loss(model, batch)
        self.state[0] += 1
        return (self.state[2](loss) if self.state[0] >= self.state[1] else loss), metrics


@pytest.mark.parametrize(
    ("poison", "words"),
    [
        (lambda loss: loss * float("nan"), "step 6: the loss is nan"),
        (lambda loss: loss + float("inf"), "step 6: the loss is inf"),
        (lambda loss: loss + (loss * 0).sqrt(), "step 6: the gradient's norm is nan"),
        (lambda loss: loss * 0 + 1e5, "step 10: the loss diverges"),
    ],
)
def test_a_bad_loss_names_the_step_and_the_last_good_checkpoint(llama, examples, tmp_path, poison, words):
    module = llama()
    config = CONFIG.model_copy(update={"checkpoint_every": 2, "epochs": 9})
    with pytest.raises(TrainingError) as caught:
        fit(module, examples(16), Poisoned(6, poison), config, seed=0, folder=tmp_path)
    assert words in str(caught.value)
    assert "last good checkpoint is step-0000000" in str(caught.value)
    assert all(torch.isfinite(p).all() for p in module.parameters())


def test_a_bad_loss_at_once(llama, examples):
    with pytest.raises(TrainingError, match=r"step 1: the loss is nan; there is no checkpoint yet"):
        fit(llama(), examples(4), Poisoned(1, lambda loss: loss * float("nan")), CONFIG, seed=0)


class Cramped(SFT):
    """A machine that holds so many tokens a forward pass."""

    def __init__(self, room, error):
        object.__setattr__(self, "room", (room, error))

    def loss(self, model, batch):
        if batch.input_ids.numel() > self.room[0]:
            raise self.room[1]
        return super().loss(model, batch)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_nothing_else(llama, examples, error):
    given, events = examples(16), []
    plain, cramped = llama(), llama()
    config = CONFIG.model_copy(update={"epochs": 2})
    expected = fit(plain, given, SFT(), config, seed=0)
    found = fit(cramped, given, Cramped(90, error), config, seed=0, on_event=events.append)
    assert [row["loss"] for row in found.curve] == pytest.approx([row["loss"] for row in expected.curve], rel=1e-5)
    assert furthest(weights(plain), weights(cramped)) < 1e-6
    halved = [e for e in events if e["event"] == "out of memory"]
    assert 1 <= len(halved) <= 4
    assert halved[-1]["micro_batch_tokens"] < 90 * 2


def test_out_of_memory_on_one_example(llama, examples):
    with pytest.raises(TrainingError, match="single example of"):
        fit(llama(), examples(8), Cramped(3, MemoryError()), CONFIG, seed=0)


def test_other_errors_are_not_taken_for_memory(llama, examples):
    with pytest.raises(RuntimeError, match="shape mismatch"):
        fit(llama(), examples(8), Cramped(3, RuntimeError("shape mismatch")), CONFIG, seed=0)


def test_packing_falls_back_where_it_would_leak(llama, examples):
    events, module = [], llama()
    forward = module.forward
    module.forward = lambda position_ids=None, cu_seq_lens_q=None, **given: forward(**given)
    config = CONFIG.model_copy(update={"batching": "pack"})
    found = fit(module, examples(16), SFT(), config, seed=0, on_event=events.append)
    assert "padded batches are used" in next(e["text"] for e in events if e["event"] == "packing off")
    expected = fit(llama(), examples(16), SFT(), CONFIG, seed=0)
    assert found.curve[-1]["loss"] == pytest.approx(expected.curve[-1]["loss"])


def test_bfloat16_trains_float32_weights(llama, examples):
    module = llama().bfloat16()
    result = fit(module, examples(20), SFT(), TuneConfig(dtype="bfloat16", epochs=20, lr=1e-2), seed=0)
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert result.curve[-1]["loss"] < 0.8 * result.curve[0]["loss"]


def test_a_batch_source_of_one_s_own(llama, examples):
    rows, _ = admit(examples(6), max_length=128, vocabulary=24)

    class Hardest:
        """Draws the row with the highest loss so far."""

        steps = 12

        def __init__(self):
            self.losses = {}

        def draw(self, step):
            return [rows[step] if step < 6 else rows[max(self.losses, key=self.losses.get)]]

        def update(self, step, outputs):
            self.losses[step if step < 6 else max(self.losses, key=self.losses.get)] = outputs["loss"]

        def state_dict(self):
            return {"losses": list(self.losses.items())}

        def load_state_dict(self, state):
            self.losses = dict(map(tuple, state["losses"]))

    source = Hardest()
    result = fit(llama(), [r.example for r in rows], SFT(), CONFIG, seed=0, source=source)
    assert result.steps == 12
    assert len(source.losses) == 6


def _process(rank, port, make, given, objective, config, queue):
    """One process of a two-process training on CPU."""
    from accelerate import PartialState

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    PartialState._reset_state()
    module, events = make(1), []
    result = fit(module, given, objective, config, seed=3, on_event=events.append)
    queue.put((rank, World().size, result.curve, {n: v.numpy() for n, v in weights(module).items()}, events))
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("cramped", [False, True])
def test_two_processes_equal_one(llama, examples, cramped):
    """Nine examples in windows of 4: the last window has one example for two processes. Cramped: one runs out of memory."""
    given = examples(9)
    config = CONFIG.model_copy(update={"batch_size": 4, "micro_batch_tokens": 100})
    objectives = [SFT(), Cramped(35, MemoryError()) if cramped else SFT()]
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [
        context.Process(target=_process, args=(rank, port, llama, given, objectives[rank], config, queue))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = sorted((queue.get(timeout=60) for _ in processes), key=lambda item: item[0])
    for process in processes:
        process.join(timeout=30)
    module = llama(1)
    expected = fit(module, given, SFT(), config, seed=3)
    for _, size, curve, ends, _ in found:
        assert size == 2
        assert [row["loss"] for row in curve] == pytest.approx([row["loss"] for row in expected.curve], abs=1e-6)
        assert [row["trained_tokens"] for row in curve] == [row["trained_tokens"] for row in expected.curve]
        assert furthest({n: torch.from_numpy(v) for n, v in ends.items()}, weights(module)) < 1e-6
    assert any(e["event"] == "out of memory" for e in found[0][4]) == cramped
    assert found[1][4] == [], "only the main process reports"
