"""Which charts a run has."""

from __future__ import annotations

from areal_launcher.ui.charts import EVALUATION, TIME_PER_STAGE, charts_of


def test_charts_show_only_statistics_that_the_run_has() -> None:
    [reward] = charts_of(["task_reward", "something_else"])
    assert (reward.title, reward.statistics) == ("Reward", ("task_reward",))


def test_the_stages_of_a_step_are_one_chart() -> None:
    [stages] = charts_of(["timeperf/train", "timeperf/rollout"])
    assert (stages.title, stages.statistics) == (TIME_PER_STAGE, ("timeperf/rollout", "timeperf/train"))


def test_a_run_without_statistics_has_no_charts() -> None:
    assert charts_of([]) == []


def test_the_terms_of_the_reward_are_one_chart() -> None:
    [_, terms] = charts_of(["task_reward", "reward/task", "reward/style"])
    assert (terms.title, terms.statistics) == ("Terms of the reward", ("reward/style", "reward/task"))


def test_the_weights_of_all_servers_are_one_chart_in_their_order() -> None:
    known = [f"servers/{index}/version" for index in (10, 2, 0)]
    [held] = charts_of([*known, "servers/0/losses"])
    assert held.statistics == ("servers/0/version", "servers/2/version", "servers/10/version")


def test_the_held_out_sets_are_one_chart() -> None:
    known = ["eval-rollout/reward", "eval-rollout/math500/maj@4", "eval-rollout/math500/reward_ci95"]
    reward, held_out = charts_of(known)
    assert reward.statistics == ("eval-rollout/reward",)
    assert (held_out.title, held_out.statistics) == (EVALUATION, ("eval-rollout/math500/maj@4", "eval-rollout/reward"))
