"""The recipe that `tamis init` writes fits the data, and can be read and run."""

import json

import pytest

from tamis import recipe as recipes
from tamis.errors import ConfigError
from tamis.report.starter import write_starter

SHAPES = {
    "answers": ([{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(10)], ["temperature", "accuracy"]),
    "mapped": ([{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(10)], ["temperature", "accuracy"]),
    "messages": (
        [
            {"messages": [{"role": "user", "content": f"p{i}"}, {"role": "assistant", "content": "a"}]}
            for i in range(10)
        ],
        ["gold", "perplexity"],
    ),
    "preference": (
        [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad"} for i in range(10)],
        ["gold", "perplexity"],
    ),
    "prompts": ([{"prompt": f"p{i}"} for i in range(10)], ["prefix"]),
}


def components(made):
    found = [s[k] for s in made.stages for k in s if k in ("sample", "evaluate")]
    return [next(iter(c)) for c in found]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "name", ["data.jsonl", 'it\'s "my" {data}: #1 (2).jsonl', "-é💥\n.jsonl", "a " * 60 + ".jsonl"]
)
def test_the_starter_fits_the_shape_and_every_file_name(tmp_path, shape, name):
    rows, wanted = SHAPES[shape]
    data, out = tmp_path / name, tmp_path / "my recipe.yaml"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    mapping = {"prompt": "question", "answer": "answer"} if shape == "mapped" else {}
    said = write_starter(str(data), out, mapping)
    assert f"tamis run '{out}'" in said
    made = recipes.load(out)
    assert made.task["data"]["path"] == str(data)
    assert made.task["data"].get("map", {}) == mapping
    assert components(made) == wanted
    assert recipes.load(out, lab=True).model == "nano-sums"


def test_the_starter_overwrites_nothing_and_names_what_cannot_be_written(tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match="is there already"):
        write_starter(str(data), data, {})
    with pytest.raises(ConfigError, match="cannot be written"):
        write_starter(str(data), tmp_path / "none" / "r.yaml", {})


def test_a_large_file_begins_with_a_part(tmp_path):
    rows = "".join(f'{{"question": "{i} + 1 =", "answer": "{i + 1}"}}\n' for i in range(1001))
    (tmp_path / "large.jsonl").write_text(rows)
    write_starter(str(tmp_path / "large.jsonl"), tmp_path / "recipe.yaml", {})
    task = recipes.load(tmp_path / "recipe.yaml").task["data"]
    assert (task["size"], task["heldout"]) == (200, 150)
