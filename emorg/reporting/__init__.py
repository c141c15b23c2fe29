"""What people look at after a run: the page, tables, figures, a summary."""

from emorg.reporting.arms import Arm, group_title, load_arms
from emorg.reporting.findings import Finding, finding, findings
from emorg.reporting.stage import ReportConfig, arms_table, rate_warnings, report, report_and_say

__all__ = [
    "Arm",
    "Finding",
    "ReportConfig",
    "arms_table",
    "finding",
    "findings",
    "group_title",
    "load_arms",
    "rate_warnings",
    "report",
    "report_and_say",
]
