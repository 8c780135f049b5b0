from tamis import registry
from tamis.report.pages import write_samplers


def test_the_page_of_samplers_has_all_with_their_needs_and_refusals(tmp_path):
    page = write_samplers(tmp_path).read_text(encoding="utf-8")
    rows = {line.split("](")[0][3:]: line for line in page.splitlines() if line.startswith("| [")}
    known = {c.name: c for c in registry.components("sampler")}
    assert set(rows) == set(known)
    assert "text generation | yes" in rows["temperature"]
    assert "token ids and next-token logits | no" in rows["prefix"]
    assert "no model | yes" in rows["gold"]
    assert "sampler 'prefix' needs token ids and next-token logits, and the model" in page
    assert "sampler 'temperature' needs" not in page
