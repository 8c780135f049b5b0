"""The report in a real browser: it draws, follows light and dark, and never scrolls sideways, on a laptop or a phone."""

import html
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from fixture import parts, write_run

from tamis.report.html import write_report

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--allow-file-access-from-files",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no binary 'chromium' on this machine")

MEASURE = """<!doctype html><body style="margin:0">
<script>
const inFrame = width => new Promise(done => {
  const frame = document.createElement("iframe");
  frame.style = `width:${width}px;height:900px;border:0`;
  frame.onload = () => done(measure(frame.contentDocument, width));
  frame.src = "report.html";
  document.body.append(frame);
});
const crossing = (p, q) =>
  p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 4 && q.top < p.bottom - 4;
function measure(page, width) {
  const drawn = list => [...list].filter(e => e.getClientRects().length);
  const name = e => e.tagName + ":" + e.textContent.slice(0, 20);
  const wide = drawn(page.querySelectorAll("body *")).filter(e => e.getBoundingClientRect().right > width + 1).map(name);
  const sizes = [], overlap = [];
  for (const svg of drawn(page.querySelectorAll("svg:not(.share)"))) {
    const texts = [...svg.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect(), t]);
    const scale = svg.getBoundingClientRect().width / svg.viewBox.baseVal.width;
    for (const [i, [a, p, t]] of texts.entries()) {
      sizes.push(parseFloat(getComputedStyle(t).fontSize) * scale);
      overlap.push(...texts.slice(i + 1).filter(([, q]) => crossing(p, q)).map(([b]) => a + " | " + b));
    }
  }
  return {scroll: page.documentElement.scrollWidth, wide, overlap, smallest: Math.min(...sizes), texts: sizes.length};
}
Promise.all(WIDTHS.map(inFrame)).then(found => {
  const out = document.createElement("pre");
  out.id = "out";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
});
</script></body>"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "rft-3f9a1c2e", parts())).parent


def chromium(folder, page, *flags):
    profile = folder / "profile"
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    shutil.rmtree(profile, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-800:]
    return done.stdout.decode()


def screenshot(folder, page, width, height, *flags):
    image_module = pytest.importorskip("PIL.Image", reason="reading a screenshot needs pillow")
    path = folder / "shot.png"
    chromium(folder, page, f"--window-size={width},{height}", f"--screenshot={path}", *flags)
    with image_module.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.int16)


def test_laptop_screenshot_is_drawn(folder):
    pixels = screenshot(folder, folder / "report.html", 1280, 1000)
    assert pixels.shape == (1000, 1280, 3)
    assert pixels.std() > 10
    blue = (pixels[..., 2] - pixels[..., 0]) > 60
    assert blue.sum() > 500
    assert pixels[:, :60].std() < 1


@pytest.mark.parametrize(("theme", "dark"), [("light", False), ("dark", True)])
def test_theme_can_be_forced(folder, theme, dark):
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = folder / f"{theme}.html"
    page.write_text(text.replace('<html lang="en">', f'<html lang="en" data-theme="{theme}">'), encoding="utf-8")
    pixels = screenshot(folder, page, 800, 600)
    assert (np.median(pixels) < 60) == dark
    assert (pixels.max() - pixels.min()) > 180


def measured(folder, *widths):
    page = folder / "measure.html"
    page.write_text(MEASURE.replace("WIDTHS", json.dumps(widths)), encoding="utf-8")
    dom = chromium(folder, page, "--window-size=1400,1000", "--virtual-time-budget=8000", "--dump-dom")
    found = json.loads(html.unescape(re.search(r'<pre id="out">(.*?)</pre>', dom, re.S)[1]))
    return dict(zip(widths, found, strict=True))


def test_nothing_overflows_or_overlaps(folder):
    for width, found in measured(folder, 320, 390, 768, 1280).items():
        assert found["wide"] == [], width
        assert found["scroll"] <= width
        assert found["overlap"] == [], width
        assert found["texts"] > 40
        assert found["smallest"] >= (9.5 if width == 320 else 10.5), width


def test_words_without_a_break_do_not_overflow(tmp_path):
    made, word = parts(), "unbreakable" * 40
    made.recipe = {**made.recipe, "name": word, "about": word, "model": word}
    made.rows = [made.rows[0] | {"name": word}, made.rows[0] | {"unit": word}]
    made.dropped["task"].append({"record": "x", "reason": word})
    made.heldout["before"][1][0] = replace(made.heldout["before"][1][0], label=word, rationale=word, id="")
    made.status, made.error = "failed", word
    folder = write_report(write_run(tmp_path / word[:60], made)).parent
    for width, found in measured(folder, 390, 1280).items():
        assert found["wide"] == [], width
        assert found["scroll"] <= width


def test_the_measure_finds_what_is_too_wide(folder, tmp_path):
    text = (folder / "report.html").read_text(encoding="utf-8")
    wide = '<main><p style="width:600px;max-width:none">x</p>'
    (tmp_path / "report.html").write_text(text.replace("<main>", wide), encoding="utf-8")
    found = measured(tmp_path, 390)[390]
    assert found["scroll"] > 600
    assert found["wide"] == ["P:x"]
