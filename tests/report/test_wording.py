import pytest
from hypothesis import given
from hypothesis import strategies as st

from tamis.report import wording


def row(value=0.135, low=0.07, high=0.2, p=0.0004, **more):
    before, after = 0.31, 0.31 + (value or 0)
    return {
        "name": "accuracy",
        "unit": "",
        "higher_is_better": True,
        "before": {"value": before, "low": before - 0.06, "high": before + 0.06, "n": 200},
        "after": {"value": after, "low": after - 0.06, "high": after + 0.06, "n": 200},
        "difference": {"value": value, "low": low, "high": high, "p_value": p, "test": "mcnemar", "n": 200},
    } | more


def test_a_significant_gain_names_every_figure():
    found = wording.finding(row())
    assert (found.kind, found.title) == ("better", "Accuracy rose from 31.0% to 44.5%")
    for figure in (
        "31.0%",
        "44.5%",
        "200 held-out prompts",
        "+13.5 points",
        "+7.0 to +20.0",
        "p < 0.001",
        "exact McNemar test",
    ):
        assert figure in found.sentence


def test_a_difference_in_another_unit_than_the_metric_says_so():
    made = row(0.1421, 0.04, 0.25, name="perplexity", before={"value": 1.2, "n": 9}, after={"value": 1.4, "n": 9})
    made["difference"]["unit"] = "nats per token"
    assert wording.paired_change(made) == "+0.1421 nats per token"
    assert "The paired difference is +0.1421 nats per token, 95% interval" in wording.finding(made).sentence
    assert wording.paired_change(row()) == "+13.5 points"


def test_a_significant_loss_and_a_metric_where_lower_is_better():
    assert wording.finding(row(-0.1, -0.15, -0.05)).kind == "worse"
    assert wording.finding(row(-0.1, -0.15, -0.05)).title.startswith("Accuracy fell")
    assert wording.finding(row(-0.1, -0.15, -0.05, higher_is_better=False)).kind == "better"
    assert wording.finding(row(higher_is_better=False)).kind == "worse"


@pytest.mark.parametrize("p", [0.05, 0.3, 1.0])
def test_no_change_is_claimed_from_five_percent_on(p):
    found = wording.finding(row(0.02, -0.04, 0.08, p))
    assert (found.kind, found.title) == ("same", "No significant change in accuracy")
    assert "rose" not in found.sentence


def test_interval_and_test_that_disagree_are_named():
    assert "borderline" in wording.finding(row(0.05, -0.001, 0.1, 0.04)).sentence
    assert "borderline" in wording.finding(row(0.05, 0.001, 0.1, 0.06)).sentence
    assert "borderline" not in wording.finding(row()).sentence


def test_no_p_value_claims_nothing():
    found = wording.finding(row(p=None))
    assert found.kind == "untested"
    assert "rose" not in found.title
    assert wording.finding({k: v for k, v in row().items() if k != "difference"}).kind == "untested"


def test_one_side_or_none():
    only = {k: v for k, v in row().items() if k not in ("after", "difference")}
    assert wording.finding(only).title == "Accuracy before tuning: 31.0%"
    assert "not measured after" in wording.finding(only).sentence
    assert wording.finding({"name": "accuracy"}).kind == "nothing"
    assert wording.finding(row() | {"before": {"value": None}, "after": {"value": float("nan")}}).kind == "nothing"


@given(st.floats(0, 1))
def test_a_p_value_is_never_printed_on_the_wrong_side(p):
    text = wording.p_value(p)
    printed = 0.0 if text == "p < 0.001" else float(text.removeprefix("p = "))
    assert (printed < 0.05) == (p < 0.05)


def test_shares_are_percentages_and_other_units_are_not():
    assert wording.is_share(row())
    assert not wording.is_share(row(unit="nats"))
    assert not wording.is_share({"before": {"value": 3.2, "low": 3, "high": 3.4}})
    assert wording.change(-0.051, True) == "−5.1 points"
    assert wording.change(-2.5, False) == "−2.5"
    assert wording.figure(1234.5, False) in ("1,234", "1,235")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599.6, "1 h 0 min"), (7500, "2 h 5 min")],
)
def test_seconds(value, text):
    assert wording.seconds(value) == text


def test_hidden_characters_are_shown():
    assert (
        wording.visible("a\u202eb\x00\x1b[31m\ud800 ok\n\té👩‍🔬")
        == "a⟨U+202E⟩b⟨U+0000⟩⟨U+001B⟩[31m⟨U+D800⟩ ok\n\té👩‍🔬"
    )


@given(st.text(max_size=4000))
def test_cut_is_bounded_and_keeps_both_ends(text):
    short = wording.cut(text, 100, 50)
    assert len(short) <= 230
    if len(text) > 230:
        assert f"{len(text) - 150:,} characters left out" in short
        assert short.startswith(text[:100])
        assert short.endswith(text[-50:])
    else:
        assert short == text
