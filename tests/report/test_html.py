import re
from copy import deepcopy
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from fixture import Parts, curve, parts, write_run

from tamis.errors import StoreError
from tamis.records import Example, Message, Target, Turn, Verdict
from tamis.report.html import CONTENTS, page, render_report, write_report
from tamis.report.material import Material

VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = (
    "<script>alert(1)</script><img src=http://x.test/a onerror=alert(2)>\u202e\x07 ' \" & &lt; {{ 7*7 }} {% raw %}"
)


class Page(HTMLParser):
    """Collects ids, links, text and attributes of a page; refuses tags that do not close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.ids, self.links, self.attributes, self.texts = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v or "") for k, v in attrs]
        self.ids += [v for k, v in attrs if k == "id"]
        self.links += [v for k, v in attrs if k in ("href", "src", "action", "data", "srcset", "poster")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def check(text):
    """Whatever the run: well-formed, all sections, nothing from outside, no script, small."""
    page = Page(text)
    assert [i for i in page.ids if i in CONTENTS] == list(CONTENTS)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "script" not in page.tags
    assert not {"img", "iframe", "object", "embed", "link", "base", "form"} & set(page.tags)
    assert not [k for _, k, _ in page.attributes if k.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    assert len(text.encode()) < 400_000
    return page


@pytest.fixture(scope="module")
def made():
    return parts()


@pytest.fixture(scope="module")
def run(made, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "rft-3f9a1c2e", made)


@pytest.fixture(scope="module")
def report(run):
    return check(render_report(run))


def test_report_is_written_whole_and_read_only_from_the_run_folder(run):
    path = write_report(run)
    assert path == run.path / "report.html"
    assert path.read_text(encoding="utf-8") == render_report(run)
    assert not list(run.path.glob(".tmp-*"))


def test_headline_says_what_the_figures_say(report, made):
    row = made.rows[0]
    before, after = row["before"], row["after"]
    assert f"Accuracy rose from {before['value']:.1%} to {after['value']:.1%}" in report.text
    assert f"{before['low']:.1%} to {before['high']:.1%}" in report.text
    assert "on 200 held-out prompts" in report.text
    assert "exact McNemar test" in report.text
    assert (
        f"smollm2-135m was tuned on {len(made.examples)} examples, made from 1,600 samples of 200 prompts"
        in report.text
    )


def test_funnel_counts_add_up(run, made):
    m = Material.read(run)
    assert sum(m.accepted) == sum(v.label == "correct" for v in made.verdicts)
    assert sum(m.refusals.values()) + sum(m.accepted) == 1600
    reasons = {(where, reason): n for where, reason, n in page(m)["funnel"]["reasons"]}
    assert reasons["judge", "unparseable answer"] == sum(v.label == "unparseable_answer" for v in made.verdicts)
    assert reasons["select", "accepted, but not selected"] == sum(m.accepted) - len(made.selected)
    assert reasons["task", "duplicate prompt"] == 17
    assert reasons["compose", "same text twice"] == 23


def test_what_a_selector_drops_is_counted_once(made, tmp_path):
    accepted = [v.completion_ids[0] for v in made.verdicts if v.score == 1 and v.completion_ids[0] not in made.selected]
    dropped = {**made.dropped, "select": [{"record": i, "reason": "states a false equation"} for i in accepted[:5]]}
    m = Material.read(write_run(tmp_path / "select", replace(made, dropped=dropped)))
    reasons = {reason: n for where, reason, n in page(m)["funnel"]["reasons"] if where == "select"}
    assert reasons == {"accepted, but not selected": len(accepted) - 5, "states a false equation": 5}


def test_examples_agree_with_the_metric(run, made):
    groups = {g["title"]: g for g in page(Material.read(run))["comparisons"]}
    difference = made.rows[0]["difference"]
    assert groups["Gained"]["total"] == len(difference["gained"])
    assert groups["Lost"]["total"] == len(difference["lost"])
    assert groups["Still right"]["total"] == difference["kept_right"]
    assert groups["Still wrong"]["total"] == difference["kept_wrong"]
    for case in groups["Gained"]["cases"]:
        assert [a["right"] for a in case["answers"]] == [False, True]
    assert len(groups["Gained"]["cases"]) == 4


def test_ledger_sums_and_marks_what_was_reused(run):
    ledger = page(Material.read(run))["ledger"]
    stages = run.manifest["stages"]
    assert [r["state"] for r in ledger["rows"]][:3] == ["reused", "reused", "done"]
    everything, fresh = (dict(zip(ledger["labels"], cells, strict=True)) for _, cells in ledger["totals"])
    sampled = [s["cost"]["sampled_tokens"] for s in stages]
    assert everything["sampled tokens"] == f"{sum(sampled):,}"
    assert fresh["sampled tokens"] == f"{sum(n for n, s in zip(sampled, stages, strict=True) if not s['reused']):,}"
    assert everything["trained tokens"] == "48,000"
    assert "judge calls" not in ledger["labels"]


def test_recipe_and_commands(report, run):
    assert "per_prompt: 4" in report.text
    assert f"tamis run {run.path.parent.name}/rft-3f9a1c2e/recipe.yaml --fresh" in report.text
    assert 'pip install "tamis==0.1.0"' in report.text


def test_hostile_text_is_shown_not_run(made, tmp_path):
    bad = deepcopy(made)
    first = bad.heldout["before"][0][0]
    changed = replace(first, turns=(Turn("assistant", HOSTILE),), id="")
    bad.heldout["before"][0][0] = changed
    bad.heldout["before"][1][0] = Verdict(first.prompt_id, (changed.id,), HOSTILE, 0.0, HOSTILE, None, HOSTILE)
    target = Target((Message(HOSTILE, HOSTILE), Message("assistant", HOSTILE)), token_ids=(1, 2), weights=(0.0, 1.0))
    bad.examples[0] = Example("sft", bad.prompts[0].id, target)
    bad.recipe = {**bad.recipe, "name": HOSTILE, "about": HOSTILE, "task": {"data": {"path": HOSTILE}}}
    bad.rows[0] |= {"name": HOSTILE, "unit": HOSTILE}
    bad.dropped["task"].append({"record": "x", "reason": HOSTILE})
    bad.status, bad.error = "failed", HOSTILE
    text = render_report(write_run(tmp_path / "runs" / "bad", bad))
    page = check(text)
    assert "<script" not in text
    assert "\u202e" not in text
    assert "{{ 7*7 }} {% raw %}" in page.text
    assert text.count("&lt;script&gt;") > 8


@pytest.mark.parametrize(
    "keep",
    [
        (),
        ("prompts",),
        ("prompts", "completions"),
        ("prompts", "completions", "verdicts"),
        ("prompts", "completions", "examples"),
    ],
)
def test_partial_runs(made, tmp_path, keep):
    some = Parts(status="running", **{name: getattr(made, name) for name in keep})
    page = check(render_report(write_run(tmp_path / "part", some)))
    assert "This run is not finished" in page.text
    assert "nothing measured yet" in page.text
    assert ("Nothing has been sampled" in page.text) == ("completions" not in keep)
    assert ("Prompts, none accepted" in page.text) == ("verdicts" in keep)
    assert "No training step is recorded." in page.text


def test_only_the_base_is_measured(made, tmp_path):
    some = replace(made, curve=[], heldout={"before": made.heldout["before"]})
    some.rows = [{k: v for k, v in made.rows[0].items() if k not in ("after", "difference")}]
    page = check(render_report(write_run(tmp_path / "base", some)))
    assert "Accuracy before tuning:" in page.text
    assert "It was not measured after tuning." in page.text
    assert "Right before tuning" in page.text
    assert "one training run" not in page.text


def test_several_rounds_and_metrics(made, tmp_path):
    perplexity = {
        "evaluator": "perplexity",
        "name": "perplexity",
        "unit": "per token",
        "higher_is_better": False,
        "before": {"value": 12.3, "low": 11.2, "high": 13.6, "n": 200},
        "after": {"value": None, "low": None, "high": None, "n": 0},
    }
    rounds = [*curve(40), *curve(30, "b", 0.8), {"step": 1, "loss": None, "lr": 0.1}]
    some = replace(made, curve=rounds, rows=[*made.rows, perplexity], recipe={**made.recipe, "loop": 3})
    page = check(render_report(write_run(tmp_path / "rounds", some)))
    assert "in 3 rounds" in page.text
    assert all(f"round {i}" in page.text for i in (1, 2))
    assert "1 steps have a loss that is not a finite number" in page.text
    assert "Perplexity before tuning: 12.3" in page.text


def test_huge_texts_are_cut_with_a_note(made, tmp_path):
    long = "ab " * 40_000
    target = Target((Message("user", long), Message("assistant", long)), token_ids=(1, 2), weights=(0.0, 1.0))
    some = replace(
        made, examples=[Example("preference", made.prompts[0].id, target, rejected=target, margin=0.5, weight=2.0)] * 50
    )
    text = render_report(write_run(tmp_path / "long", some))
    page = check(text)
    assert "118,700 characters left out" in page.text
    assert text.count('class="message rejected"') == 5


def test_a_damaged_run_folder_is_told(made, tmp_path):
    run = write_run(tmp_path / "damaged", Parts(prompts=made.prompts[:3]))
    (run.path / "metrics.json").write_text("{")
    with pytest.raises(StoreError, match=r"metrics\.json"):
        write_report(run)
    assert not (run.path / "report.html").exists()


def test_light_and_dark_have_the_same_variables(run):
    text = render_report(run)
    sets = [set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root[^{]*\{([^}]*)\}", text)]
    assert len(sets) == 5
    assert sets[0] == sets[1] == sets[2] == sets[3]
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= sets[0] | sets[4] | {"--tone"}
