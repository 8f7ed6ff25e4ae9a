"""Structure of the Grafana dashboard. tests/control_plane/test_dashboard.py runs its queries on a real Prometheus."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import dashboard

DASHBOARD = dashboard.dashboard()
GRAPHS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_panels_have_unique_ids_and_do_not_overlap() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)

    def overlap(a: dict[str, int], b: dict[str, int]) -> bool:
        return (
            a["x"] < b["x"] + b["w"]
            and b["x"] < a["x"] + a["w"]
            and a["y"] < b["y"] + b["h"]
            and b["y"] < a["y"] + a["h"]
        )

    places = [panel["gridPos"] for panel in panels]
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]
    assert all(place["x"] + place["w"] <= 24 for place in places)


def test_every_panel_queries_the_selected_data_source_and_has_titles_and_legends() -> None:
    for panel in GRAPHS:
        assert panel["title"]
        targets = panel["targets"]
        assert targets
        assert len({target["refId"] for target in targets}) == len(targets)
        assert all(target["legendFormat"] for target in targets)
        for part in (panel, *targets):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_every_variable_is_defined_and_used() -> None:
    defined = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", str(DASHBOARD["panels"])))
    assert used == defined == {"datasource", "namespace", "name"}


def test_legends_use_only_labels_that_the_query_keeps() -> None:
    for panel in GRAPHS:
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            kept: Any = re.findall(r"by \(([^)]*)\)", target["expr"])
            assert shown <= {label.strip() for labels in kept for label in labels.split(",")}, panel["title"]


def test_the_dashboard_has_a_schema_that_grafana_11_reads() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == [
        row.title for row in dashboard.ROWS
    ]
