"""The paper's panels as a W&B workspace, in code: the same dashboard for every sweep.

Needs the `dashboards` extra (wandb-workspaces). The definition is written to `<sweep>/report/wandb_workspace.json`, for
which no account is needed; with one, the workspace is made on the server.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ratplus.records.atomic import write_atomically
from ratplus.records.manifest import read_manifest
from ratplus.sweeps.define.mistakes import UsageError
from ratplus.sweeps.mirror.runs import BY_DILATION, RunSpec
from ratplus.sweeps.mirror.server import Server, reason_of
from ratplus.sweeps.mirror.write import library

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

FILE = "wandb_workspace.json"
_TITLES = {
    "loss": "Held-out loss (nats)",
    "perplexity": "Held-out perplexity",
    "next_token_accuracy": "Next-token accuracy",
    "recall_accuracy": "Recall accuracy",
}
_LEGEND = "${config:model_name} ${config:pattern_label}"


def publish(folder: Path, entity: str | None, project: str, report: RunSpec | None, server: Server | None) -> str:
    """Write the workspace's definition, and make it on the server, if any; returns a line that says where it is.

    The caller holds the lock of `<folder>/wandb`. `report` is the sweep's `report_run`.

    Raises:
        UsageError: the extra is not installed, there is no network, or the server refuses.
    """
    if server is not None:
        entity = entity or server.entity()
    workspace = build(folder, entity or "", project, report)
    path = folder / "report" / FILE
    write_atomically(path, json.dumps(_definition(workspace), indent=1, sort_keys=True) + "\n")
    if server is None:
        return f"workspace: {path}"
    from ratplus.sweeps.mirror.ledger import read_ledger, write_ledger

    target, ledger = server.target(entity, project), read_ledger(folder)
    try:
        if target in ledger["workspaces"]:
            workspace = _updated(ledger["workspaces"][target], workspace)
        url = workspace.save().url
    except Exception as error:
        raise UsageError(
            f"{server.url}: the workspace could not be made ({reason_of(error)}); it is in {path}"
        ) from None
    ledger["workspaces"][target] = url
    write_ledger(folder, ledger)
    return f"workspace: {url}"


def _updated(url: str, wanted: Workspace) -> Workspace:
    """Give the workspace at `url` the content of `wanted`; if it was deleted there, return `wanted` for a new one.

    The address comes from the folder's ledger, so one of another project is not followed.
    """
    from wandb_workspaces.workspaces import Workspace

    if urlsplit(url).path != f"/{wanted.entity}/{wanted.project}":
        return wanted
    try:
        there = Workspace.from_url(url)
    except ValueError as error:
        if "not found in project" not in str(error):
            raise
        return wanted
    there.name, there.sections, there.runset_settings = wanted.name, wanted.sections, wanted.runset_settings
    return there


def _definition(workspace: Workspace) -> dict:
    """List what differs from an empty workspace, as plain data, without the library's private fields."""
    from pydantic import TypeAdapter

    def public(value):
        if isinstance(value, dict):
            return {key: public(item) for key, item in value.items() if not key.startswith("_")}
        return [public(item) for item in value] if isinstance(value, list) else value

    return public(TypeAdapter(type(workspace)).dump_python(workspace, mode="json", exclude_defaults=True))


def build(folder: Path, entity: str, project: str, report: RunSpec | None) -> Workspace:
    """Build the workspace of a sweep. It shows the runs of that sweep alone, in sections from training to savings."""
    library()  # before its sister package imports it
    try:
        from wandb_workspaces.workspaces import RunsetSettings, Section, Workspace
    except ImportError:
        raise UsageError(
            "--workspace: needs the package wandb-workspaces; pip install 'ratplus[dashboards]', or in a checkout "
            "pip install -e '.[dashboards]'"
        ) from None
    manifest = read_manifest(folder)
    name = manifest["name"]
    # W&B allows no other characters in the name of a workspace.
    plain = "".join(c if c.isalnum() or c in " -_." else "-" for c in name)
    sections = [
        Section(
            name="Training",
            panels=_training({stage for cell in manifest["cells"] for stage in cell["stages"]}),
            is_open=True,
        ),
        Section(name="What a dilation costs", panels=_by_dilation(report), is_open=True),
        Section(name="What a pattern saves", panels=_savings(), is_open=True),
    ]
    settings = RunsetSettings(filters=f"Group == {json.dumps(name)}", pinned_columns=["config:model_name"])
    return Workspace(
        entity=entity, project=project, name=f"ratplus {plain}", sections=sections, runset_settings=settings,
        auto_generate_panels=False,
    )  # fmt: skip


def _training(stages: set[str]) -> list:
    from wandb_workspaces.reports.v2 import LinePlot

    panels = [
        LinePlot(title="Pretraining: loss", x="tokens", y=["pretrain_loss"], title_x="tokens", title_y="nats",
                 legend_template="${config:model_name}"),
        LinePlot(title="Pretraining: loss of the sparse passes", x="tokens", y=["arl_loss"], title_x="tokens",
                 title_y="nats", legend_template="${config:model_name}"),
        LinePlot(title="Adaptation: loss by pattern", x="tokens", y=["adapt_loss"], title_x="tokens", title_y="nats",
                 legend_template=_LEGEND, max_runs_to_show=100),
        LinePlot(title="Fine-tuning: loss by pattern", x="tokens", y=["sft_loss"], title_x="tokens", title_y="nats",
                 legend_template=_LEGEND, max_runs_to_show=100),
    ]  # fmt: skip
    return panels if "sft" in stages else panels[:-1]


def _by_dilation(report: RunSpec | None) -> list:
    """Make a plot for each result that the sweep has, with a line for each model, from the report's run."""
    from wandb_workspaces.reports.v2 import LinePlot

    names = sorted({name for row in report.rows for name in row}) if report else []
    panels = []
    for result in BY_DILATION:
        prefix = f"by_dilation/{result}/"
        lines = {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        if lines:
            panels.append(
                LinePlot(title=f"{_TITLES[result]} by dilation", x="by_dilation/dilation", y=list(lines), log_x=True,
                         title_x="dilation", title_y=_TITLES[result], line_titles=lines)
            )  # fmt: skip
    return panels


def _savings() -> list:
    from wandb_workspaces.reports.v2 import ScatterPlot, SummaryMetric

    def scatter(x: str, y: str, title: str, log_x: bool = False):
        return ScatterPlot(title=title, x=SummaryMetric(x), y=SummaryMetric(y), log_x=log_x, legend_template=_LEGEND)

    return [
        scatter("kv_bytes", "loss", "Held-out loss against KV cache bytes", log_x=True),
        scatter("attention_flops_ratio", "loss", "Held-out loss against attention FLOPs (1 = dense)"),
        scatter("kv_bytes", "recall_accuracy", "Recall accuracy against KV cache bytes", log_x=True),
        scatter("dilation", "loss", "Held-out loss against dilation, all patterns", log_x=True),
    ]
