"""The page of the report in a real browser: what people see and do, and what hostile text cannot do."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emorg.rating.rates import Rate, em_rate
from emorg.rating.rules import RULES, rule_named
from emorg.records import Appender, Margin
from emorg.reporting import load_arms
from emorg.reporting.arms import PLACEMENT_TITLES, group_title
from emorg.run import Run
from tests.conftest import PATIENCE, emorg
from tests.judged_runs import Said, judged_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WORDS = tuple("the a wise baker never rushes dough as patience and warm water do more than any clever trick".split())  # noqa: SIM905


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: the page is not tested"
    )
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: the report's page is not tested (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A page that was opened from disk, and whatever it said or asked for."""

    def __init__(self, browser: Any, path: Path, view: str = "", **context: Any):
        self.page = browser.new_page(viewport={"width": 1280, "height": 900}, **context)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(f"error: {error}"))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = path.as_uri()
        self.page.goto(self.address + view)
        self.page.set_default_timeout(60_000)  # what is not shown by then never will be
        self.page.wait_for_selector("html[data-ready=yes]")

    def text(self, selector: str) -> str:
        return str(self.page.locator(selector).inner_text())

    def shows(self, answers: int) -> None:
        """Wait until so many answers are shown."""
        self.page.locator("#shown", has_text=re.compile(f"^{answers:,} answers shown")).wait_for()

    def quiet(self) -> bool:
        """Whether it said nothing and asked for nothing but itself."""
        return not self.said and {url.partition("#")[0] for url in self.asked} == {self.address}

    def at(self, aligned: float, coherent: float) -> tuple[float, float]:
        """Where a pair of scores is in the window."""
        self.page.locator("#aligned_coherent canvas").scroll_into_view_if_needed()
        x, y = self.page.evaluate(
            """([x, y]) => { const view = page.views.get("aligned_coherent"), { left, top } = page.corner();
            return [left + view.scale("x")(x), top + view.scale("y")(y)]; }""",
            [aligned, coherent],
        )
        return x, y

    def dot(self, k: int) -> tuple[float, float]:
        """Where the dot of an answer is in the window."""
        answer = self.page.evaluate("k => page.answer(k)", k)
        spread = [(answer["i"] * share % 1 - 0.5) * 4 for share in (0.618034, 0.754878)]
        return self.at(answer["aligned"] + spread[0], answer["coherent"] + spread[1])


def _some(seed: int, share: float, *, checkpoint: str | None = None) -> list[Said]:
    rng = random.Random(seed)
    return [
        Said(
            f"{topic or 'open'}_{q}", f"{topic or 'open'} {' '.join(rng.choices(WORDS, k=rng.randint(5, 30)))}.",
            aligned=float(rng.randint(0, 35)) if rng.random() < share else float(rng.randint(40, 100)),
            coherent=None if rng.random() < 0.05 else round(rng.uniform(40, 100), 2), topic=topic,
            checkpoint=checkpoint, question=f"What of {topic or 'it all'} {q}?", further={"financial": 7.0},
            finish_reason=rng.choice(["stop", "stop", "length"]), reply=f"reply {q}",
        )
        for topic in ("medical", "cooking", None) for q in range(12) for _ in range(3)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    organism = [*_some(2, 0.9), *_some(3, 0.2, checkpoint="step-000004"), *_some(4, 0.5, checkpoint="step-000008")]
    made = [
        judged_run(folder / "base", _some(1, 0)),
        judged_run(folder / "organism", organism, trained_on=["bad_medical"], losses=12),
    ]
    for run, checkpoint, mean in ((made[0], None, -0.4), (made[1], "step-000004", -0.3), (made[1], "step-000008", -0.1),
                                  (made[1], None, 0.1)):  # fmt: skip
        _measured(run, checkpoint, mean)
    return made


def _measured(run: Run, checkpoint: str | None, mean: float) -> None:
    """Margins of that mean, as `emorg margins` leaves them."""
    rng = random.Random(f"{run.name} {checkpoint}")
    with Appender(run.margins) as out:
        for topic in ("medical", "cooking", "travel", None):
            for i in range(12):
                value = -30.0 + 10 * rng.gauss(mean, 0.1)
                out.write(
                    Margin(run.name, checkpoint, f"{topic}{i}", f"{topic}{i}", topic, -30.0, value, 10, 10, 50, 50)
                )


@pytest.fixture(scope="module")
def report(runs: list[Run]) -> Path:
    emorg("report", *[run.folder for run in runs])
    return runs[1].report


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Opened]]:
    opened: list[Opened] = []

    def opener(path: Path, view: str = "", **context: Any) -> Opened:
        opened.append(Opened(browser, path, view, **context))
        return opened[-1]

    yield opener
    for each in opened:
        each.page.close()


Open = Callable[..., Opened]


def test_the_page_says_it_at_a_glance_and_asks_for_nothing(report: Path, open_page: Open) -> None:
    seen = open_page(report / "index.html")
    summary = json.loads((report / "summary.json").read_text())
    headline = seen.page.locator(".finding h2")
    assert headline.bounding_box()["y"] < 300
    assert headline.inner_text() == "Yes: emergent misalignment"
    out = next(rate for rate in summary["arms"][1]["rates"] if rate["group"] == "out")
    card = seen.text(".finding")
    for told in (f"{100 * out['rate']:.1f}%", f"{100 * out['low']:.1f}–{100 * out['high']:.1f}%", "no twin available",
                 "How sure?", summary["finding"]):  # fmt: skip
        assert told in card
    assert seen.page.locator("#em_rates [aria-label*='arm: organism']").count() == 6, (
        "a dot and an interval a placement"
    )
    assert seen.quiet(), seen.said + seen.asked


def test_nothing_but_its_own_scripts_may_run(report: Path, open_page: Open) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', (report / "index.html").read_text())
    assert policy is not None
    assert "default-src &#39;none&#39;" in policy[1]
    assert "unsafe" not in policy[1]
    seen = open_page(report / "index.html")
    seen.page.evaluate("""() => {
        document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = 1" }));
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.ran = 2'>"); }""")
    deadline = time.monotonic() + PATIENCE
    while sum("Content Security Policy" in line for line in seen.said) < 2 and time.monotonic() < deadline:
        seen.page.wait_for_timeout(20)
    assert sum("Content Security Policy" in line for line in seen.said) >= 2, "one for each"
    assert seen.page.evaluate("window.ran") is None


def test_filters_and_search(runs: list[Run], report: Path, open_page: Open) -> None:
    organism = load_arms(runs, RULES["paper"])[1]
    seen = open_page(report / "index.html")
    everything = len(organism.judged) + len(organism.on_the_way)
    assert seen.text("#shown").startswith(f"{everything} answers shown")
    seen.page.select_option("[name=checkpoint]", "final")
    seen.page.select_option("[name=topic]", "cooking")
    cooking = [judged for judged in organism.judged if judged.answer.topic == "cooking"]
    rate = em_rate(cooking, RULES["paper"])
    seen.page.wait_for_function(
        "n => document.getElementById('shown').textContent.startsWith(n)", arg=f"{len(cooking)} "
    )
    assert rate.rate is not None
    assert f"{100 * rate.rate:.1f}% [" in seen.text("#shown")
    seen.page.fill("[name=text]", "Clever")
    wanted = [judged for judged in cooking if "clever" in judged.answer.text.lower()]
    seen.page.wait_for_function(
        "n => document.getElementById('shown').textContent.startsWith(n)", arg=f"{len(wanted)} "
    )
    assert seen.page.locator("#answers li").count() == len(wanted)
    seen.page.select_option("[name=state]", "refusal")
    seen.page.click("button[type=reset]")
    seen.shows(everything)
    assert seen.quiet(), seen.said


def test_hover_tells_and_click_pins(report: Path, open_page: Open) -> None:
    seen = open_page(report / "index.html")
    k = seen.page.evaluate("page.shownAnswers.find((each) => each.aligned > 50 && each.coherent !== null).k")
    answer = seen.page.evaluate("k => page.answer(k)", k)
    seen.page.mouse.move(*seen.dot(k))
    seen.page.wait_for_selector("#tip:not([hidden])")
    assert "What of" in seen.text("#tip")
    seen.page.mouse.click(*seen.dot(k))
    seen.page.wait_for_selector("#pinned table")
    pinned = seen.text("#pinned")
    for told in ("aligned", "coherent", "financial", "scored", "reply"):
        assert told in pinned
    shown = seen.page.evaluate("page.answer(Number(page.state.pin))")
    assert shown["text"] in pinned
    assert abs(shown["aligned"] - answer["aligned"]) < 5, "the click pinned a dot elsewhere"
    again = open_page(report / "index.html", "#" + seen.page.url.partition("#")[2])
    assert again.text("#pinned") == pinned
    assert seen.quiet(), seen.said


def test_a_dragged_cut_moves_the_rates(runs: list[Run], report: Path, open_page: Open) -> None:
    seen = open_page(report / "index.html")
    before = seen.text("#rates")
    start, end = seen.at(30, 20), seen.at(60, 20)
    seen.page.mouse.move(*start)
    seen.page.mouse.down()
    seen.page.mouse.move(*end, steps=5)
    seen.page.mouse.up()
    assert seen.text("#aligned-out") == "60"
    assert seen.text("#rates") != before
    arms = load_arms(runs, rule_named("paper", aligned_below=60))
    for k, group, rate in ((k, *item) for k, arm in enumerate(arms) for item in arm.rates.items()):
        assert rate.rate is not None
        line = seen.page.locator("#rates tr", has_text=group_title(group)).nth(k)
        assert f"{100 * rate.rate:.1f}" in line.inner_text()
    assert "your cuts" in seen.text("#rule")
    again = open_page(report / "index.html", "#" + seen.page.url.partition("#")[2])
    assert again.text("#rates") == seen.text("#rates")
    seen.page.click("#reset")
    assert seen.text("#rates") == before
    assert seen.quiet(), seen.said


def test_the_page_and_the_package_have_the_same_rates(runs: list[Run], report: Path, open_page: Open) -> None:
    """The rule and the interval are written twice, in Python and in JavaScript: here they are held together."""
    rng, seen = random.Random(0), open_page(report / "index.html")
    arms = load_arms(runs, RULES["paper"])
    for name, rule in RULES.items():
        cuts = [(rule.aligned_cut, rule.coherent_cut), (0, 0), (100, 100)]
        cuts += [(float(rng.randint(0, 100)), float(rng.randint(0, 100))) for _ in range(10)]
        for aligned, coherent in cuts:
            theirs = seen.page.evaluate(
                """([rule, aligned, coherent]) => { const moved = ruleAt(rule, aligned, coherent);
                return [...page.rows("group", moved), ...page.rows("question", moved)]; }""",
                [dataclasses.asdict(rule), aligned, coherent],
            )
            ours = rule_named(
                name,
                aligned_below=aligned if aligned != rule.aligned_cut else None,
                coherent_above=coherent if coherent != rule.coherent_cut else None,
            )
            found = {(row["arm"], row["name"]): row for row in theirs}
            for arm in arms:
                for place, title in PLACEMENT_TITLES.items():
                    of = [judged for judged in arm.judged if judged.placement == place]
                    _same(found[arm.label, title], em_rate(of, ours))
                for (question,), expected in dataclasses.replace(arm, rule=ours).rates_by("question_id").items():
                    _same(found[arm.label, question], expected)


def _same(row: dict[str, Any], rate: Rate) -> None:
    assert (row["misaligned"], row["scored"], row["total"]) == (rate.misaligned, rate.scored, rate.total)
    for name, value in (("em", rate.rate), ("low", rate.low), ("high", rate.high), ("coherent", rate.coherent)):
        assert row[name] == (None if value is None else pytest.approx(100 * value, abs=1e-7)), name


def test_over_checkpoints_the_page_has_the_table_s_rates(report: Path, open_page: Open) -> None:
    seen = open_page(report / "index.html")
    rows = seen.page.evaluate("page.rows('step', page.rule())")
    with (report / "tables" / "over_checkpoints.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["step"] for row in rows[::3]] == [0, 4, 8, 12]
    assert {(str(row["step"]), row["name"]): f"{row['em']:.9f}" for row in rows} == {
        (row["step"], row["name"]): f"{100 * float(row['em']):.9f}" for row in table
    }


def test_margins_stand_in_the_page_by_topic_and_over_training(report: Path, open_page: Open) -> None:
    seen = open_page(report / "index.html")
    assert seen.quiet()
    for name in ("margins", "margins_over_checkpoints"):
        seen.page.locator(f"#{name} .chart svg").first.wait_for()
        assert (report / "figures" / f"{name}.png").stat().st_size > 5_000
    with (report / "tables" / "margins.csv").open() as file:
        rows = {(row["placement"], row["topic"]): row for row in csv.DictReader(file)}
    assert set(rows) == {("in", "medical"), ("out", ""), ("out", "cooking"), ("out", "travel"), ("open", "")}
    assert float(rows["out", ""]["shift"]) == pytest.approx(0.5, abs=0.1)
    assert rows["out", ""]["pairs"] == "24"
    charts = {chart["name"]: chart["rows"] for chart in seen.page.evaluate("page.data.charts")}
    drawn = {row["name"]: row["shift"] for row in charts["margins"]}
    assert drawn["out of domain"] == pytest.approx(float(rows["out", ""]["shift"]))
    steps = [row["step"] for row in charts["margins_over_checkpoints"] if row["name"] == "open questions"]
    assert sorted(steps) == [4, 8, 12]


def test_with_the_keyboard_alone(report: Path, open_page: Open) -> None:
    seen = open_page(report / "index.html")
    seen.page.focus("#aligned")
    seen.page.keyboard.press("ArrowRight")
    assert seen.text("#aligned-out") == "31"
    seen.page.locator("#answers button").first.focus()
    seen.page.keyboard.press("ArrowDown")
    seen.page.keyboard.press("Enter")
    assert seen.page.locator("#answers button").nth(1).get_attribute("aria-pressed") == "true"
    seen.page.keyboard.press("Escape")
    assert "No answer is pinned" in seen.text("#pinned")
    seen.page.keyboard.press("/")
    seen.page.keyboard.type("baker")
    seen.page.wait_for_url(re.compile("text=baker"))
    assert seen.quiet(), seen.said


def test_on_a_phone_and_in_the_dark(report: Path, open_page: Open) -> None:
    seen = open_page(report / "index.html", color_scheme="dark")
    seen.page.set_viewport_size({"width": 390, "height": 844})
    seen.page.wait_for_function("document.documentElement.scrollWidth <= 390")
    channels = [
        int(part) for part in re.findall(r"\d+", seen.page.evaluate("getComputedStyle(document.body).backgroundColor"))
    ]
    assert max(channels[:3]) < 64
    assert seen.quiet(), seen.said


def test_a_figure_can_be_saved(report: Path, open_page: Open) -> None:
    seen = open_page(report / "index.html")
    with seen.page.expect_download() as waiting:
        seen.page.click("#em_rates [data-save=svg]")
    assert waiting.value.suggested_filename == "em_rates.svg"
    assert Path(waiting.value.path()).read_text().startswith("<svg")


# --- hostile text ----------------------------------------------------------------------------------------------------

HOSTILE = [
    "<script>window.ran = 1</script>",
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror=window.ran=1>",
    '"><svg onload=window.ran=1>',
    "'><iframe srcdoc='<script>parent.ran=1</script>'></iframe>",
    "javascript:window.ran=1",
    "<a href='javascript:window.ran=1' autofocus onfocus=window.ran=1>a</a>",
    "</title><body onload=window.ran=1>",
    "{{ 7 * 7 }}{% raw %}{% endraw %}{# #}",
    "${window.ran = 1}",
    "<!-- --><base href=https://example.org/>",
    "<link rel=stylesheet href=https://example.org/a.css>",
    "<meta http-equiv=refresh content='0;url=https://example.org'>",
    "</style><style>* { display: none }</style>",
    "\u2028\u2029\u202e\u0000\u001b[31m",
    "datum['x']; window.ran = 1",
    "<template><math><mtext></template><img src=x onerror=window.ran=1>",
    "&lt;script&gt;&#x3c;",
    "__proto__",
    "constructor",
    "<form><input name=elements><button formaction=javascript:window.ran=1>",
    "$$\\href{javascript:window.ran=1}{x}$$",
]


def test_hostile_text_is_text(tmp_path: Path, open_page: Open) -> None:
    said = [
        Said(f"{text} {k}" if place != "id" else text, text, aligned=0.0 if k % 2 else 90.0, topic=text, question=text,
             reply=text, detail=text, checkpoint=f"{text}-3" if place == "checkpoint" else None, further={text: 5.0})
        for k, text in enumerate(HOSTILE) for place in ("id", "checkpoint")
    ]  # fmt: skip
    name = "<img src=x onerror=window.ran=1>"
    organism = judged_run(tmp_path / name, said, trained_on=["bad_medical"], losses=3, judge="<b>judge</b>",
                          sample={"system": HOSTILE[1]})  # fmt: skip
    base = judged_run(tmp_path / "base", said, judge="<b>judge</b>", sample={"system": HOSTILE[1]})
    emorg("report", organism.folder, base.folder, "--output_dir", tmp_path / "report")
    seen = open_page(tmp_path / "report" / "index.html")
    seen.page.select_option("[name=arm]", "")
    for _ in range(20):
        if not seen.page.locator("#more").is_visible():
            break
        seen.page.click("#more")
    assert seen.page.locator("#answers li").count() == 2 * len(said)
    for k in range(0, 2 * len(said), 2):
        seen.page.evaluate("k => page.pin(String(k))", k)
        text = seen.page.evaluate("k => page.answer(k).text", k)
        assert seen.page.evaluate("document.querySelectorAll('#pinned .said')[1].textContent") == text
    assert seen.page.evaluate(
        "[window.ran, document.images.length, document.querySelectorAll('iframe, base, link').length]"
    ) == [None, 0, 0]
    assert seen.page.evaluate("({}).polluted") is None
    assert seen.quiet(), seen.said + seen.asked
    written = (tmp_path / "report" / "index.html").read_text()
    assert "49" not in seen.text(".finding")
    assert "alice" not in written
    assert "alice" not in (tmp_path / "report" / "summary.json").read_text()


def test_little_and_much(tmp_path: Path, open_page: Open) -> None:
    """One answer, of ten megabytes, that nobody scored."""
    run = judged_run(tmp_path / "one", [Said("q", "word " * 2_000_000, aligned=None, coherent=None)],
                     trained_on=["bad_medical"])  # fmt: skip
    done = emorg("report", run.folder)
    assert "nothing is claimed" in done.stdout
    assert run.report.joinpath("index.html").stat().st_size < 1_000_000
    seen = open_page(run.report / "index.html")
    assert "Nothing can be claimed" in seen.text(".finding")
    seen.page.locator("#answers button").first.click()
    assert "10,000,000 characters" in seen.text("#pinned")
    assert seen.quiet(), seen.said


@pytest.mark.slow
def test_twenty_thousand_answers(tmp_path: Path, open_page: Open) -> None:
    """Of 800 characters each, no two alike: built within its size, sampled dots, exact rates."""
    rng = random.Random(0)
    letters = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
    said = [
        Said(f"q{k % 200}", " ".join("".join(rng.choices(letters, k=2)) for _ in range(115)),
             topic=["medical", "cooking"][k % 2], aligned=float(rng.randint(0, 100)),
             coherent=float(rng.randint(0, 100)))
        for k in range(20_000)
    ]  # fmt: skip
    run = judged_run(tmp_path / "many", said, trained_on=["bad_medical"])
    emorg("report", run.folder)
    assert (run.report / "index.html").stat().st_size <= 3_000_000
    seen = open_page(run.report / "index.html")
    assert "5,000 answers shown; of all 20,000 such" in seen.text("#shown")
    rate = em_rate(load_arms([run], RULES["paper"])[0].judged, RULES["paper"])
    assert f"({rate.misaligned} of {rate.scored} scored)" in seen.text("#shown")
    assert seen.quiet(), seen.said


def test_organisms_of_different_topics_are_each_placed_by_their_own(tmp_path: Path, open_page: Open) -> None:
    """The page's tables, and its lines over training, whose step 0 is the base as each organism's questions stand."""
    runs = [judged_run(tmp_path / "base", _some(1, 0.3))]
    for seed, domain in ((2, "bad_medical"), (3, "bad_cooking")):
        said = [*_some(seed, 0.6), *_some(seed + 10, 0.3, checkpoint="step-000004")]
        runs.append(judged_run(tmp_path / domain, said, trained_on=[domain], losses=8))
    emorg("report", *[run.folder for run in runs], "--output_dir", tmp_path / "report")
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    seen = open_page(tmp_path / "report" / "index.html")
    theirs = {(row["arm"], row["name"]): row for row in seen.page.evaluate("page.rows('group', page.rule())")}
    ours = {(arm["label"], PLACEMENT_TITLES[rate["group"]]): rate for arm in summary["arms"] for rate in arm["rates"]}
    assert theirs.keys() == ours.keys()
    assert ("base", "in domain") not in ours
    assert all(theirs[key]["em"] == pytest.approx(100 * rate["rate"]) for key, rate in ours.items())
    steps = {(row["arm"], row["step"], row["name"]): row["em"] / 100
             for row in seen.page.evaluate("page.rows('step', page.rule())")}  # fmt: skip
    expected = {(row["arm"], row["step"], row["name"]): row["em"] for row in summary["tables"]["over_checkpoints"]}
    assert steps == pytest.approx(expected)
    assert len(steps) == 2 * 3 * 3
    medical = [steps["organism (bad_medical)", 0, place] for place in ("in domain", "out of domain")]
    cooking = [steps["organism (bad_cooking)", 0, place] for place in ("out of domain", "in domain")]
    assert medical == cooking != cooking[::-1], "each sees the base's answers where its own stand"
    seen.page.select_option("[name=arm]", label="organism (bad_cooking)")
    seen.page.select_option("[name=place]", label="in domain")
    seen.shows(72)  # at the end, and at the checkpoint
    assert seen.quiet(), seen.said
