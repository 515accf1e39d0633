"""Report pages: what stages made and measured, each number beside the artifact it comes from."""

from pipeline.evaluation.report.build import write_report
from pipeline.evaluation.report.sources import Made, Origin

__all__ = ["Made", "Origin", "write_report"]
