"""Evaluation: columns, a runner that scores every sample, records, intervals and tables."""

from lightning_robust.evaluation.columns import Attack, Clean, Column, Corruption, worst_of_pgd
from lightning_robust.evaluation.intervals import Interval, PairedTest, holm, mean_interval, paired_test, wilson
from lightning_robust.evaluation.records import Record, load_records, save_records, worst_case
from lightning_robust.evaluation.runner import evaluate
from lightning_robust.evaluation.table import accuracy_table, difference_table

__all__ = [
    "Attack",
    "Clean",
    "Column",
    "Corruption",
    "Interval",
    "PairedTest",
    "Record",
    "accuracy_table",
    "difference_table",
    "evaluate",
    "holm",
    "load_records",
    "mean_interval",
    "paired_test",
    "save_records",
    "wilson",
    "worst_case",
    "worst_of_pgd",
]
