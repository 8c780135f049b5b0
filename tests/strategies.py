"""What a user can get wrong: values, recipes, YAML, rows, files and folders that are almost right."""

import copy
import csv
import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

ODD_TEXT = (
    "",
    " ",
    "\t",
    "é\u0301",
    "\u202eabc",
    "\ufeff",
    "\0",
    "\ud800",
    "a\nb",
    "x" * 5000,
    "null",
    "~",
    "../../etc",
    "/dev/null",
    "~nobody-at-all/x",
    "hub:",
    "http://",
    "%s{}{0}",
    "[bold]x[/bold]",
    "2012-13-45",
)
ODD_NUMBERS = (0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 1e308, float("nan"), float("inf"), -0.0, 0.1)
texts = st.one_of(st.sampled_from(ODD_TEXT), st.text(max_size=12))
leaves = st.one_of(st.none(), st.booleans(), st.sampled_from(ODD_NUMBERS), st.integers(), texts)


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


junk = st.one_of(
    leaves,
    st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts, v, max_size=3), max_leaves=6),
    st.sampled_from([30, 60, 500]).map(_deep),
)


def _places(value: Any, path: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for k, v in inner for p in _places(v, (*path, k))]


def _parent(value: Any, path: tuple) -> Any:
    for part in path[:-1]:
        value = value[part]
    return value


@st.composite
def mutated(draw: st.DrawFn, originals: list[Any], most: int = 3) -> Any:
    """One of the originals with up to `most` values replaced, deleted, renamed, wrapped, repeated or swapped."""
    made = copy.deepcopy(draw(st.sampled_from(originals)))
    for _ in range(draw(st.integers(1, most))):
        places = _places(made)
        if not places:
            return made
        path = draw(st.sampled_from(places))
        _mutate(draw, made, path, _parent(made, path), path[-1])
    return made


def _mutate(draw: st.DrawFn, made: Any, path: tuple, node: Any, last: Any) -> None:
    how = draw(st.sampled_from(["replace", "delete", "rename", "wrap", "repeat", "swap", "retype"]))
    value = node[last]
    if how == "replace":
        node[last] = draw(junk)
    elif how == "delete":
        del node[last]
    elif how == "rename" and isinstance(node, dict):
        name = draw(st.one_of(texts, st.sampled_from([str(last) + "s", str(last)[:-1], str(last).upper()]), leaves))
        node[name] = node.pop(last)
    elif how == "wrap":
        node[last] = draw(st.sampled_from([[value], {"x": value}, {str(last): value}]))
    elif how == "repeat" and isinstance(node, list):
        node.insert(last, copy.deepcopy(value))
    elif how == "swap":
        other = draw(st.sampled_from(_places(made)))
        node[last] = copy.deepcopy(_parent(made, other)[other[-1]])
    else:
        node[last] = draw(st.sampled_from([str(value), [], {}, None, True, 0, ""]))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)
MERGE_BOMB = "a: &a {k0: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}], k{i + 1}: 1}}\n" for i in range(8)
)
SNIPPETS = (
    "\t",
    "\ufeff",
    "---\n",
    "...\n",
    "%YAML 9.9\n",
    "%TAG ! tag:x,2000:\n",
    "extends: rft\n",
    "extends: ~nobody-at-all/x.yaml\n",
    "extends: [rft]\n",
    "set: {seed: 3}\n",
    "set: {stages.sample[99999999999999999999].n: 3}\n",
    "seed: !!int ''\n",
    "seed: !!bool maybe\n",
    "seed: !!float x\n",
    "seed: !!timestamp x\n",
    "seed: !!binary ä\n",
    "about: !!python/object/apply:os.system ['true']\n",
    "about: !!set {a, b}\n",
    "about: !!omap [a: 1]\n",
    "about: !!pairs 3\n",
    "seed: 2012-13-45\n",
    "seed: 0x\n",
    "seed: 1_000\n",
    "seed: 1:30:00\n",
    "seed: " + "9" * 5000 + "\n",
    "about: &a [*a]\n",
    "about: *nowhere\n",
    "<<: {name: x}\n",
    "<<: 3\n",
    "? [a, b]\n: 3\n",
    "? {a: b}\n: 3\n",
    "name: a\nname: b\n",
    "about: |\n",
    "about: '\n",
    "about: \x07\n",
    "about: " + "[" * 2000 + "\n",
    "lab: {set: {seed: 1}, extends: x}\n",
    BOMB,
    MERGE_BOMB,
)


@st.composite
def yaml_texts(draw: st.DrawFn, originals: list[str]) -> bytes:
    """The text of a recipe with lines taken out, doubled, moved or put in, and sometimes damaged bytes."""
    lines = draw(st.sampled_from(originals)).splitlines(keepends=True)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines)))
        how = draw(st.sampled_from(["put", "put", "put", "cut", "double", "indent", "text"]))
        if how == "put":
            lines.insert(at, draw(st.sampled_from(SNIPPETS)))
        elif how == "text":
            lines.insert(at, draw(texts) + "\n")
        elif at < len(lines):
            lines[at] = {"cut": "", "double": lines[at] * 2, "indent": " " + lines[at]}[how]
    data = "".join(lines).encode(errors="surrogatepass")
    return draw(damaged(data)) if draw(st.integers(0, 3)) == 0 else data


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Bytes cut short, overwritten, with something put in, or in another encoding."""
    at = draw(st.integers(0, len(data)))
    how = draw(st.sampled_from(["cut", "flip", "insert", "utf-16", "latin", "crlf", "gzip", "empty", "bom"]))
    if how == "cut":
        return data[:at]
    if how == "flip":
        return data[:at] + draw(st.binary(max_size=4)) + data[at + 4 :]
    if how == "insert":
        return data[:at] + draw(st.sampled_from([b"\0", b"\xff\xfe", b'"', b"\r", b"\n\n", b"[" * 3000])) + data[at:]
    if how == "utf-16":
        return data.decode(errors="replace").encode("utf-16")
    if how == "latin":
        return data[:at] + b"\xe9\xfc" + data[at:]
    if how == "crlf":
        return data.replace(b"\n", b"\r\n")
    return {"gzip": gzip.compress(data), "empty": b"", "bom": b"\xef\xbb\xbf" + data}[how]


ROWS = [
    {"question": "What is 1+1?", "answer": "2"},
    {"prompt": "Say hello.", "chosen": "Hello.", "rejected": "No.", "id": 7},
    {"instruction": "Add.", "input": "3 and 4", "output": 7},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}], "id": "a"},
    {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "Look"}]}]},
    {"problem": "x²", "solution": None, "meta": {"a": [1, {"b": 2}]}},
]
GOOD = [{"question": f"What is {i} plus {i}?", "answer": str(2 * i), "id": f"q{i}", "x": "train"} for i in range(12)]
_some = st.lists(st.one_of(st.sampled_from(ROWS), mutated(ROWS), junk), max_size=12)
rows = _some | st.tuples(st.just(GOOD), _some).map(lambda both: both[0] + both[1])


def as_json(value: Any) -> str:
    return json.dumps(value, default=str, skipkeys=True)


def as_csv(values: list[Any], delimiter: str = ",") -> bytes:
    """Rows as a table of all their fields; the header is there where there is no row, too."""
    found = [v for v in values if isinstance(v, dict)]
    names = list(dict.fromkeys(str(k) for row in found for k in row)) or ["question", "answer"]
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([["" if row.get(n) is None else row.get(n) for n in names] for row in found])
    return out.getvalue().encode(errors="replace")


def as_parquet(values: list[Any]) -> bytes:
    """Rows as Parquet; what Arrow cannot hold in one column is stored as text."""
    found = [v for v in values if isinstance(v, dict)]
    names = list(dict.fromkeys(k for row in found for k in row if isinstance(k, str)))
    columns = []
    for name in names:
        cells = [row.get(name) for row in found]
        try:
            columns.append(pa.array(cells))
        except (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError):
            columns.append(pa.array([ascii(cell)[:200] for cell in cells]))
    keys = [n.encode(errors="replace").decode() for n in names]
    out = io.BytesIO()
    try:
        pq.write_table(pa.Table.from_arrays(columns, names=keys), out)
    except pa.ArrowNotImplementedError:
        cells = [pa.array([ascii(row.get(name))[:200] for row in found]) for name in names]
        pq.write_table(pa.Table.from_arrays(cells, names=keys), out)
    return out.getvalue()
