"""`datasets` reads chat records: with a user's own checks and shards, streamed alone, or loaded as a table and iterated."""

import json
import re
import tempfile
import time
import unicodedata
from hashlib import blake2b
from pathlib import Path

import harness
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import disable_progress_bars, load_dataset

ROLES = {"system", "user", "assistant", "tool"}
SHARD = 4096


def checked(row):
    """What a careful user's map function does: roles and text, a key of the normalised prompt, a content id, a split."""
    messages = row["messages"]
    if not messages or any(m["role"] not in ROLES or not isinstance(m["content"], str) for m in messages):
        return {"ok": False, "key": "", "id": "", "split": "", "reference": ""}
    reference = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
    asked = messages[:-1] if reference else messages
    text = "\n".join(m["content"] for m in asked if m["role"] != "system")
    plain = unicodedata.normalize("NFKC", text) if not text.isascii() else text
    plain = " ".join(re.sub(r'[.,;:?"](?!\d)', " ", plain).split()).casefold()
    key = blake2b(plain.encode(), digest_size=16).hexdigest()
    content = json.dumps([asked, reference, row["id"]], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    own = blake2b(content.encode(), digest_size=16).hexdigest()
    split = "heldout" if int(key[:8], 16) < 0.2 * 2**32 else "train"
    return {"ok": bool(plain), "key": key, "id": own, "split": split, "reference": reference}


def checks(rows, folder):
    seen, ids, kept, shards, dropped = set(), set(), [], 0, 0
    for row in rows:
        given = row.pop("given")
        if not row["ok"] or row["key"] in seen or given in ids:
            dropped += 1
            continue
        seen.add(row["key"])
        ids.add(given)
        kept.append(row)
        if len(kept) == SHARD:
            pq.write_table(pa.Table.from_pylist(kept), folder / f"{shards}.parquet", compression="zstd")
            kept, shards = [], shards + 1
    if kept:
        pq.write_table(pa.Table.from_pylist(kept), folder / f"{shards}.parquet", compression="zstd")


def work(path, kind, mode):
    disable_progress_bars()
    builder = {"jsonl": "json", "parquet": "parquet"}[kind]
    with tempfile.TemporaryDirectory() as place:
        started = time.perf_counter()
        streaming = mode != "table"
        rows = load_dataset(builder, data_files=path, split="train", streaming=streaming, cache_dir=place)
        if mode == "checks":
            checks(rows.map(lambda row: {"given": row["id"], **checked(row)}), Path(place))
        else:
            sum(1 for _ in rows)
        return {"seconds": time.perf_counter() - started}


if __name__ == "__main__":
    harness.serve(work)
