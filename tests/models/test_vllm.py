"""vLLM as an engine, against a stub with the signatures of vLLM 0.33.0 that records what it is asked.

No GPU is needed and none is used: what a stub cannot show (speed, memory, numbers) is not tested here.
"""

import dataclasses
import json
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from tamis import environment
from tamis.errors import ConfigError, MissingExtra, ModelError
from tamis.hashing import derive_seed
from tamis.models import ModelRef
from tamis.models.vllm import VLLMModel
from tamis.records import Law, Message, Prompt
from tokenizers_made import tokenizer

CONTEXT = 64


@dataclasses.dataclass
class SamplingParams:
    """The fields that are used, with vLLM's names and defaults; anything else is a TypeError, as there."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self):
        assert self.n == 1
        assert self.seed is None or -(2**63) <= self.seed < 2**63
        assert 0 <= self.temperature <= 2
        assert not (self.stop and not self.detokenize), "stop strings are only supported when detokenize is True"


@dataclasses.dataclass(frozen=True)
class LoRARequest:
    lora_name: str
    lora_int_id: int
    lora_path: str = ""


def place(token, logprob):
    return {token: SimpleNamespace(logprob=logprob, rank=1, decoded_token=None)}


class LLM:
    """Answers with tokens that follow from the seed; stops as vLLM does, at a stop token or a stop string."""

    made: ClassVar[list["LLM"]] = []
    words: tuple[int, ...] = tuple(range(20, 30))
    finish: str | None = None

    def __init__(
        self,
        model,
        *,
        tokenizer=None,
        trust_remote_code=False,
        dtype="auto",
        seed=0,
        max_num_seqs=None,
        generation_config="auto",
        logprobs_mode="raw_logprobs",
        enable_lora=False,
        max_loras=1,
        max_lora_rank=16,
    ):
        if "refuse" in str(model):
            raise ValueError("Model architectures ['X'] are not supported for now.\nmore")
        self.options = {key: value for key, value in locals().items() if key != "self"}
        self.model_config = SimpleNamespace(max_model_len=CONTEXT)
        self.shut = False
        core = SimpleNamespace(shutdown=lambda timeout=None: setattr(self, "shut", True))
        self.llm_engine = SimpleNamespace(engine_core=core)
        self.asked: list[tuple] = []
        LLM.made.append(self)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        assert len(prompts) == len(sampling_params)
        self.asked += list(zip(prompts, sampling_params, strict=True))
        self.use_tqdm, self.lora = use_tqdm, lora_request
        return [self._answer(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params, strict=True)]

    def _answer(self, ids, params):
        rng = np.random.default_rng(params.seed)
        tokens, finish = [], "length"
        while len(tokens) < params.max_tokens and finish == "length":
            tokens.append(int(rng.choice(self.words)))
            if tokens[-1] in (params.stop_token_ids or ()):
                finish = "stop"
        logprobs = [place(t, -0.1 * t) for t in tokens] if params.logprobs is not None else None
        output = SimpleNamespace(
            index=0, text="", token_ids=tokens, logprobs=logprobs, finish_reason=self.finish or finish
        )
        scored = None
        if params.prompt_logprobs is not None:
            scored = [None] + [place(t, -t / 7) for t in ids[1:]]
        return SimpleNamespace(prompt_token_ids=ids, prompt_logprobs=scored, outputs=[output], finished=True)


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """vLLM is installed and there is a GPU, so far as anyone asks."""
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.33.0" if name == "vllm" else real(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(LLM, "made", [])
    monkeypatch.delenv("VLLM_NO_USAGE_STATS", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tokenizer("chatml").save_pretrained(path)
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [23]}))
    return path


def model_of(folder, **options):
    return VLLMModel(ModelRef("tiny", "local", "identity", ("text",), folder=folder), **options)


PROMPTS = [Prompt((Message("user", text),)) for text in ("add 12 + 30", "next", "how many apples are left?")]


def test_each_candidate_is_a_request_with_its_own_seed_and_token_ids(folder):
    model, law = model_of(folder, batch_rows=32), Law(temperature=0.8, top_k=5, max_new_tokens=6)
    found = list(model.generate(PROMPTS, law, candidates=[[0, 1], [], [4]], seed=9))
    (llm,) = LLM.made
    wanted = [(PROMPTS[0], 0), (PROMPTS[0], 1), (PROMPTS[2], 4)]
    assert [p.seed for _, p in llm.asked] == [derive_seed(9, prompt.id, c) for prompt, c in wanted]
    for (given, params), (prompt, c), completion in zip(llm.asked, wanted, found, strict=True):
        assert given == {"prompt_token_ids": model.chat.prompt_ids(prompt.messages)}
        assert (params.temperature, params.top_k, params.max_tokens, params.logprobs) == (0.8, 5, 6, 0)
        assert params.ignore_eos
        assert set(params.stop_token_ids) == {23, *model.chat.end_ids}
        assert (completion.prompt_id, completion.index, completion.model) == (prompt.id, c, "identity")
        assert completion.logprobs == ()
        assert completion.raw_logprobs == tuple(np.float32(-0.1 * t) for t in completion.token_ids)
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] == 23 else "length")
    assert [c.cost.prompt_tokens for c in found] == [
        len(llm.asked[0][0]["prompt_token_ids"]),
        0,
        len(llm.asked[2][0]["prompt_token_ids"]),
    ]
    assert not llm.use_tqdm


def test_the_engine_is_made_for_exact_records(folder):
    model = model_of(folder, batch_rows=32)
    list(model.generate(PROMPTS[:1], Law(max_new_tokens=2), candidates=[[0]], seed=0))
    (llm,) = LLM.made
    expected = {"dtype": "bfloat16", "generation_config": "vllm", "logprobs_mode": "raw_logprobs", "max_num_seqs": 32}
    assert expected.items() <= llm.options.items()
    assert llm.options["model"] == llm.options["tokenizer"] == str(folder)
    assert not llm.options["trust_remote_code"]
    assert not llm.options["enable_lora"]
    import os

    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"
    assert model.key == {
        "engine": "vllm",
        "version": "0.33.0",
        "device": "cuda",
        "dtype": "bfloat16",
        "batch_rows": 32,
        "invariant": False,
    }


@pytest.mark.parametrize(
    ("law", "same"), [(Law(max_new_tokens=4), True), (Law(temperature=0, max_new_tokens=4), False)]
)
def test_logprobs_under_the_law_are_given_where_they_follow_from_the_model_s(folder, law, same):
    (found,) = model_of(folder).generate(PROMPTS[:1], law, candidates=[[0]], seed=0)
    assert found.logprobs == (found.raw_logprobs if same else (0.0,) * len(found.token_ids))


def test_results_do_not_depend_on_how_many_are_asked_for(folder):
    law = Law(max_new_tokens=8)
    many = list(model_of(folder).generate(PROMPTS, law, candidates=[[0, 1, 2]] * 3, seed=4))
    (one,) = model_of(folder).generate(PROMPTS[1:2], law, candidates=[[2]], seed=4)
    assert one == dataclasses.replace(many[5], cost=one.cost)


def test_a_stop_string_cuts_where_our_text_first_holds_it(folder):
    model = model_of(folder)
    ids = model.tokenizer("add the numbers")["input_ids"]
    cut = model.tokenizer.decode(ids[:3])[-2:]
    LLM_words, LLM.words = LLM.words, tuple(ids)
    try:
        law = Law(max_new_tokens=40, stop=(cut,))
        (found,) = model.generate(PROMPTS[:1], law, candidates=[[0]], seed=1)
    finally:
        LLM.words = LLM_words
    params = LLM.made[0].asked[0][1]
    assert (params.stop, params.detokenize) == ([cut], True)
    assert cut not in found.text
    assert found.finish_reason == "stop"
    assert cut in model.tokenizer.decode(found.token_ids)
    assert cut not in model.tokenizer.decode(found.token_ids[:-1])
    assert len(found.raw_logprobs) == len(found.token_ids)


def test_a_prompt_that_fills_the_context_is_an_error_and_new_tokens_are_limited(folder):
    long, full = Prompt((Message("user", "0 1 " * 80),)), Prompt((Message("user", "tea " * 5),))
    model = model_of(folder)
    found = list(model.generate([long, full], Law(max_new_tokens=500), candidates=[[0], [0]], seed=0))
    assert [c.finish_reason == "error" for c in found] == [True, False]
    ((given, params),) = LLM.made[0].asked
    assert params.max_tokens == CONTEXT - len(given["prompt_token_ids"])


def test_scores_are_prompt_logprobs(folder):
    model = model_of(folder)
    scores = model.logprobs([[5, 6, 7], [], [9]])
    np.testing.assert_allclose(scores[0], np.float32([0, -6 / 7, -1]))
    assert [len(s) for s in scores] == [3, 0, 1]
    ((given, params),) = LLM.made[0].asked
    assert given == {"prompt_token_ids": [5, 6, 7]}
    assert (params.prompt_logprobs, params.max_tokens, params.temperature) == (0, 1, 0.0)
    with pytest.raises(ModelError, match="scores at most 63"):
        model.logprobs([[1] * 64])
    with pytest.raises(ModelError, match="whole vocabulary"):
        model.next_token_logits([[1]])


def write_adapter(path: Path, **config) -> Path:
    path.mkdir()
    plain = {"peft_type": "LORA", "r": 24, "lora_alpha": 48, "bias": "none", "target_modules": ["q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps({**plain, **config}))
    return path


def test_a_plain_lora_goes_to_vllm(folder, tmp_path):
    ref = ModelRef("t", "local", "id", ("text",), folder=folder, adapter=write_adapter(tmp_path / "a"))
    model = VLLMModel(ref)
    list(model.generate(PROMPTS[:1], Law(max_new_tokens=2), candidates=[[0]], seed=0))
    (llm,) = LLM.made
    assert {"enable_lora": True, "max_lora_rank": 32, "model": str(folder)}.items() <= llm.options.items()
    assert llm.lora == LoRARequest("id", 1, str(tmp_path / "a"))


@pytest.mark.parametrize(
    "config",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"peft_type": "IA3"}, {"r": 1024}, {"bias": "all"}],
)
def test_another_adapter_is_merged_into_a_copy_that_release_removes(folder, tmp_path, monkeypatch, config):
    saved = []
    monkeypatch.setattr(
        "tamis.models.hf.LocalModel.module",
        lambda self: SimpleNamespace(save_pretrained=lambda path: saved.append(path)),
    )
    ref = ModelRef("t", "local", "id", ("text",), folder=folder, adapter=write_adapter(tmp_path / "a", **config))
    model = VLLMModel(ref)
    list(model.generate(PROMPTS[:1], Law(max_new_tokens=2), candidates=[[0]], seed=0))
    (llm,) = LLM.made
    assert llm.options["model"] == saved[0] != str(folder)
    assert not llm.options["enable_lora"]
    assert llm.lora is None
    model.release()
    assert llm.shut
    assert not Path(saved[0]).exists()


def test_release_ends_the_engine_and_the_next_use_starts_another(folder):
    model = model_of(folder)
    model.release()
    for _ in range(2):
        list(model.generate(PROMPTS[:1], Law(max_new_tokens=2), candidates=[[0]], seed=0))
        model.release()
    assert [llm.shut for llm in LLM.made] == [True, True]


def test_a_second_model_ends_the_engine_of_the_first(folder):
    first, second = model_of(folder), model_of(folder)
    for model in (first, second, second, first):
        model.logprobs([[1, 2]])
    assert [llm.shut for llm in LLM.made] == [True, True, False]


@pytest.mark.parametrize("law", [Law(temperature=3), Law(temperature=0.001), Law(top_p=0.9, min_p=0.1)])
def test_a_law_that_vllm_would_change_is_refused(folder, law):
    with pytest.raises(ConfigError, match="vLLM"):
        list(model_of(folder).generate(PROMPTS[:1], law, candidates=[[0]], seed=0))


def test_what_cannot_be_done_says_so(folder, tmp_path, monkeypatch):
    for device in ("cpu", "cuda:1"):
        with pytest.raises(ConfigError, match=f"not on '{device}'"):
            model_of(folder, device=device)
    monkeypatch.setattr(LLM, "finish", "abort")
    with pytest.raises(ModelError, match="ended a request with 'abort'"):
        list(model_of(folder).generate(PROMPTS[:1], Law(), candidates=[[0]], seed=0))
    refused = tmp_path / "refuse"
    refused.mkdir()
    with pytest.raises(ModelError, match=r"cannot load 'tiny': Model architectures \['X'\] are not supported"):
        model_of(refused).context_length  # noqa: B018
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="needs a CUDA device"):
        model_of(folder).context_length  # noqa: B018
    monkeypatch.setattr(environment, "version", lambda package: "")
    with pytest.raises(MissingExtra, match=r"pip install 'tamis\[vllm\]'"):
        model_of(folder).context_length  # noqa: B018
