"""Every view of `grpo ui` in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from typing import Any

from areal_api import names
from areal_launcher.run_files import RunLock
from hack.testbed.ui_page import Served
from support.evaluation_files import answer, write_evaluation
from support.local_runs import append, line
from support.rollout_files import sample, write_samples
from support.ui_runs import make_run

HOSTILE = '<img src=x onerror="window.attacked=1"><script>window.attacked=1</script>'


def open_run(page: Any, name: str) -> None:
    page.get_by_role("link", name=name).click()
    page.locator(".chart canvas").first.wait_for()


def figure(page: Any, label: str) -> str:
    return str(
        page.locator("dl.figures div").filter(has=page.get_by_text(label, exact=True)).locator("dd").inner_text()
    )


def test_the_list_finds_new_runs_by_itself(page: Any, site: Served) -> None:
    page.get_by_text("There are no runs here yet").wait_for()
    make_run(site.runs, "tiny/first", summary={"outcome": "succeeded"})
    row = page.get_by_role("row").filter(has_text="tiny/first")
    row.wait_for()
    assert "succeeded" in row.inner_text()
    row.get_by_role("link").click()
    page.locator(".chart canvas").first.wait_for()
    assert not {"null", "undefined", "NaN"} & set(page.locator("main").inner_text().split())


def test_a_run_that_trains_is_shown_live(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first", steps=5)
    lock = RunLock(run)
    open_run(page, "tiny/first")
    page.get_by_text("running").wait_for()
    assert figure(page, "step") == "5 / 5"
    append(names.stats_file(run), line(6, **{"task_reward/avg": 0.75}))
    page.locator("dd").get_by_text("0.75", exact=True).wait_for()
    assert figure(page, "step").startswith("6")
    lock.release()
    names.summary_file(run).write_text(json.dumps({"outcome": "failed", "error": "a loss that is not finite"}))
    page.get_by_role("alert").get_by_text("a loss that is not finite").wait_for()


def test_a_restarted_server_and_a_warning_are_events(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first", steps=5, **{"health/drift": 1.0})
    (run / "launcher.jsonl").write_text(json.dumps({"message": "server-0 was restarted", "step": 3}) + "\n")
    open_run(page, "tiny/first")
    page.get_by_role("row").filter(has_text="server-0 was restarted").wait_for()
    assert page.get_by_role("row").filter(has_text="the KL from the policy").count() == 1


def test_the_weights_of_each_server_are_a_chart_and_a_column(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first", steps=5, version=5.0, **{"servers/0/version": 4.0, "servers/0/losses": 1.0})
    servers = [{"name": "server-0", "address": "127.0.0.1:1", "state": "running", "restarts": 1}]
    (run / "local.json").write_text(json.dumps({"servers": servers}))
    open_run(page, "tiny/first")
    page.get_by_role("region", name="Weights on each server").locator("canvas").wait_for()
    assert "v4" in page.get_by_role("row").filter(has_text="server-0").inner_text()
    page.get_by_role("row").filter(has_text="server 0 no longer held the current weights").wait_for()


def test_a_hundred_thousand_steps_are_drawn_and_can_be_zoomed(page: Any, site: Served) -> None:
    make_run(site.runs, "tiny/long", steps=100_000)
    open_run(page, "tiny/long")
    page.locator("dd").get_by_text("100000 / 100000").wait_for()
    chart = page.get_by_role("region", name="Reward").locator(".u-over")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + 50, steps=4)
    with page.expect_response(re.compile("series.*first=")) as response:
        page.mouse.up()
    assert len(response.value.json()["steps"]) > 100
    with page.expect_response(re.compile("series")):
        page.get_by_role("button", name="All steps").click()


def test_any_statistic_can_be_added_as_a_chart(page: Any, site: Served) -> None:
    make_run(site.runs, "tiny/first", **{"grpo_actor/own_figure/avg": 2.0})
    open_run(page, "tiny/first")
    page.get_by_label("Add a chart").select_option("own_figure")
    page.get_by_role("region", name="own_figure").locator("canvas").wait_for()


def test_runs_are_compared_in_the_same_charts(page: Any, site: Served) -> None:
    for name in ("tiny/first", "tiny/second"):
        make_run(site.runs, name)
        page.get_by_label(f"compare {name}").check()
    page.get_by_role("button", name="Compare").click()
    legend = page.get_by_role("region", name="Reward").locator(".u-legend")
    legend.get_by_text("tiny/second").wait_for()
    assert "tiny/first" in legend.inner_text()


def test_the_page_works_with_the_keyboard_alone(page: Any, site: Served) -> None:
    make_run(site.runs, "tiny/first")
    page.get_by_role("link", name="tiny/first").wait_for()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate_handle("document.activeElement").inner_text() == "tiny/first":
            break
    page.keyboard.press("Enter")
    page.locator(".chart canvas").first.wait_for()


def test_a_narrow_screen_shows_everything_without_scrolling_sideways(page: Any, site: Served) -> None:
    make_run(site.runs, "tiny/" + "a-long-name-" * 10)
    page.set_viewport_size({"width": 360, "height": 700})
    open_run(page, "a-long-name")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_dark_mode_is_dark(page: Any, site: Served) -> None:
    page.emulate_media(color_scheme="dark")
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert sum(int(part) for part in re.findall(r"\d+", colour)[:3]) < 150


def test_text_of_a_run_never_becomes_markup(page: Any, site: Served) -> None:
    name = HOSTILE.replace("/", "∕")
    run = make_run(site.runs, f"tiny/{name}", summary={"outcome": HOSTILE, "error": HOSTILE}, **{HOSTILE: 1.0})
    (run / "launcher.jsonl").write_text(json.dumps({"message": HOSTILE, "step": 1}) + "\n")
    (run / "local.json").write_text(json.dumps({"servers": [{"name": HOSTILE, "address": HOSTILE}]}))
    names.config_file(run).write_text(HOSTILE)
    open_run(page, name)
    page.get_by_text("Configuration").click()
    page.locator("pre").get_by_text(HOSTILE).wait_for()
    page.get_by_label("Add a chart").select_option(HOSTILE)
    assert page.evaluate("window.attacked") is None
    assert page.locator("main img").count() == 0


def test_samples_are_read_problem_by_problem(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first")
    for step in (1, 2):
        rows = [
            sample(task, reward=reward, prompt=f"the problem {task} of step {step}", completion=f"{HOSTILE} {reward}",
                   tokens=["problem ", task, HOSTILE, " answer", "<end>"])
            for task in ("a", "b") for reward in (0.0, 1.0)
        ]  # fmt: skip
        write_samples(run, step, *rows)
    open_run(page, "tiny/first")
    page.get_by_text("Samples", exact=True).click()
    page.get_by_text("4 of 4 samples of 2 problems").wait_for()
    page.get_by_role("button", name="Earlier step").click()
    page.get_by_text("the problem a of step 1").first.click()
    page.locator("pre").get_by_text(f"{HOSTILE} 1.0").first.wait_for()
    page.get_by_text("Tokens", exact=True).first.press("Enter")
    token = page.locator(".tokens span", has_text=HOSTILE).first
    assert token.get_attribute("title") == "log-prob -0.5, advantage 1.5, version 3"
    assert token.get_attribute("class") == "red1"
    page.get_by_label("Colour").first.select_option("advantage")
    page.locator(".tokens .green3", has_text=HOSTILE).first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.get_by_label("reward from").fill("0.5")
    page.get_by_label("reward from").press("Enter")
    page.get_by_text("2 of 4 samples of 2 problems").wait_for()
    assert page.evaluate("window.attacked") is None


def test_a_problem_is_followed_over_the_training(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first")
    for step, reward in ((1, 0.0), (2, 0.5), (3, 1.0)):
        write_samples(run, step, sample("a", reward=reward, completion=f"{HOSTILE} {step}"))
    open_run(page, "tiny/first")
    page.get_by_text("Samples", exact=True).click()
    page.locator("summary").filter(has_text="problem a").click()
    page.get_by_text("This problem over the training").click()
    page.get_by_text("step 1: mean reward 0, 1 samples").click()
    page.locator("pre").get_by_text(f"{HOSTILE} 1").wait_for()
    assert page.evaluate("window.attacked") is None


def test_the_turns_of_a_conversation_are_marked(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first")
    write_samples(run, 1, sample(tokens=["ask", "call", "result", "answer", "<end>"],
                                 loss_mask=[False, True, False, True, True]))  # fmt: skip
    open_run(page, "tiny/first")
    page.get_by_text("Samples", exact=True).click()
    page.locator("summary").filter(has_text="problem 1").click()
    page.get_by_text("Tokens", exact=True).click()
    page.locator(".tokens span").first.wait_for()
    assert page.locator(".tokens .turn").all_inner_texts() == ["turn 1", "turn 2"]
    assert page.locator(".tokens .context").all_inner_texts() == ["ask", "result"]


def test_tool_calls_are_shown_with_name_arguments_and_result(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first")
    call = json.dumps({"name": "search", "arguments": {"query": HOSTILE, "limits": {"pages": 3}}})
    xml = "<function=read><parameter=path>a.txt</parameter></function>"
    turns = [
        ("the question", False),
        (f"I look.<tool_call>\n{call}\n</tool_call><tool_call>{xml}</tool_call>", True),
        (f"<tool_response>{HOSTILE}</tool_response>", False),
        ("<tool_call>{damaged</tool_call>", True),
        (f"<|tool|> found {HOSTILE}", False),
        ("It is 4.<tool_call>never closed", True),
    ]
    pieces = [(text[at : at + 50], generated) for text, generated in turns for at in range(0, len(text), 50)]
    values: dict[str, Any] = {name: [0.0] * len(pieces) for name in ("logprobs", "advantages")}
    values |= {name: [1] * len(pieces) for name in ("token_ids", "versions")}
    tokens, mask = [text for text, _ in pieces], [generated for _, generated in pieces]
    write_samples(run, 1, sample(tokens=tokens, loss_mask=mask, completion=turns[1][0], **values))
    open_run(page, "tiny/first")
    page.get_by_text("Samples", exact=True).click()
    page.locator("summary").filter(has_text="problem 1").click()
    page.locator(".tool.call h4").get_by_text("call search").wait_for()
    page.get_by_text("Conversation", exact=True).press("Enter")
    conversation = page.locator(".conversation")
    conversation.get_by_text("turn 3").wait_for()
    assert conversation.locator(".tool h4").all_inner_texts() == [
        "call search",
        "call read",
        "result",
        "call that cannot be read",
        "result",
    ]
    first = conversation.locator(".tool").first
    assert first.locator("dt").all_inner_texts() == ["query", "limits"]
    assert first.locator("dd").first.inner_text() == HOSTILE
    assert '"pages": 3' in first.locator("dd").nth(1).inner_text()
    assert conversation.locator(".result").all_inner_texts()[1] == f"result\n<|tool|> found {HOSTILE}"
    conversation.get_by_text("never closed").wait_for()
    assert page.evaluate("window.attacked") is None
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_two_evaluations_are_compared_problem_by_problem(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first")
    write_evaluation(run, 0, answer("1+1", 0.0, completion=HOSTILE), answer("1+2", 1.0))
    write_evaluation(run, 10, answer("1+1", 1.0, completion="2"), answer("1+2", 1.0))
    open_run(page, "tiny/first")
    page.get_by_text("Evaluations", exact=True).click()
    page.get_by_text("valid: better on 1 problems").wait_for()
    page.locator("summary").filter(has_text="What is 1+1?").press("Enter")
    sides = page.locator(".sides section")
    sides.nth(1).wait_for()
    before, after = sides.all_inner_texts()
    assert before.startswith("before training")
    assert HOSTILE in before
    assert after.startswith("after step 10")
    assert page.evaluate("window.attacked") is None


def test_a_damaged_file_of_samples_says_so(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first")
    path = write_samples(run, 1, sample())
    path.write_bytes(path.read_bytes()[:100])
    open_run(page, "tiny/first")
    page.get_by_text("Samples", exact=True).click()
    page.get_by_role("alert").get_by_text("step1.parquet is damaged").wait_for()
    site.expected_problems += ["Failed to load resource: the server responded with a status of 404 (Not Found)"]


def test_empty_and_damaged_runs_say_what_is_wrong(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/damaged")
    with names.stats_file(run).open("ab") as file:
        file.write(b"\x00\xff garbage\n{half")
    names.summary_file(run).write_text("{")
    open_run(page, "tiny/damaged")
    page.get_by_text("1 damaged lines of stats.jsonl are ignored").wait_for()
    page.get_by_role("alert").get_by_text("summary.json is not valid JSON").wait_for()
    empty = make_run(site.runs, "tiny/empty")
    names.stats_file(empty).write_text("")
    page.get_by_role("link", name="grpo runs").click()
    page.get_by_role("link", name="tiny/empty").click()
    page.get_by_text("No step has finished yet").wait_for()


def test_a_run_that_is_deleted_while_it_is_open_says_so(page: Any, site: Served) -> None:
    run = make_run(site.runs, "tiny/first")
    open_run(page, "tiny/first")
    shutil.rmtree(run)
    page.get_by_text("This run was deleted").wait_for()


def test_a_server_that_ends_is_reported(page: Any, site: Served) -> None:
    make_run(site.runs, "tiny/first")
    open_run(page, "tiny/first")
    site.process.kill()
    page.get_by_text("disconnected; trying again").wait_for()
    reasons = ("CONNECTION_REFUSED", "INCOMPLETE_CHUNKED_ENCODING", "CONNECTION_RESET", "EMPTY_RESPONSE")
    site.expected_problems += [f"Failed to load resource: net::ERR_{reason}" for reason in reasons]


def test_an_unknown_address_says_so(page: Any, site: Served) -> None:
    page.goto(site.address.split("?")[0] + "#/run/0000000000000000")
    page.get_by_role("alert").get_by_text("no such run").wait_for()
    site.expected_problems += ["Failed to load resource: the server responded with a status of 404 (Not Found)"]
