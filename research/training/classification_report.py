"""What a trained classifier or tagger confuses: precision, recall, matrix."""

from typing import Any

import numpy as np
from sklearn import metrics as sklearn_metrics

from research.tasks import task as task_lib
from research.training import atomic, evaluation, plots, run_directory, spans

FILE = 'report.json'
MATRIX = 'confusion_matrix.png'


def write(
  run: run_directory.RunDirectory,
  task: task_lib.Task,
  evaluator: evaluation.Evaluator,
) -> str:
  """Writes the report of the test split, and for classes the matrix.

  Args:
    run: Gets `report.json`, and `plots/confusion_matrix.png`.
    task: Of kind classification or tagging; of others there is nothing to
      report.
    evaluator: Has the weights.

  Returns:
    The report for people; empty if there is nothing to report.
  """
  if task.kind == 'tagging':
    report = _spans(evaluator.counts(task.data.test))
  elif task.kind == 'classification':
    counts = evaluator.counts(task.data.test)
    labels, classes = counts[evaluation.LABEL], counts[evaluation.CLASS]
    numbers = range(len(task.class_names))
    report = sklearn_metrics.classification_report(
      labels,
      classes,
      labels=numbers,
      target_names=task.class_names,
      output_dict=True,
      zero_division=0.0,
    )
    matrix = sklearn_metrics.confusion_matrix(labels, classes, labels=numbers)
    plots.confusion_matrix(matrix, task.class_names, run.plots / MATRIX)
  else:
    return ''
  atomic.write_json(run.path / FILE, report)
  return _table(report)


def _spans(counts: dict[str, np.ndarray]) -> dict[str, Any]:
  """Scores of each type of span, and of all together (micro average)."""
  totals = {name: int(v.sum()) for name, v in counts.items() if '/' in name}
  kinds = sorted({name.partition('/')[2] for name in totals})
  parts = ('found', 'predicted', 'true')
  report = {}
  for kind in kinds:
    numbers = [totals[f'{part}/{kind}'] for part in parts]
    report[kind] = {**spans.scores(*numbers), 'support': numbers[-1]}
  numbers = [sum(totals[f'{part}/{k}'] for k in kinds) for part in parts]
  report['all spans'] = {**spans.scores(*numbers), 'support': numbers[-1]}
  return report


def _table(report: dict[str, Any]) -> str:
  width = max(map(len, report))
  lines = [f'{"":<{width}}  precision  recall      f1  examples']
  for name, row in report.items():
    if isinstance(row, dict):
      lines.append(
        f'{name:<{width}}  {row["precision"]:9.3f}  {row["recall"]:6.3f}  '
        f'{row["f1-score"] if "f1-score" in row else row["f1"]:6.3f}  '
        f'{int(row["support"]):8d}'
      )
  return '\n'.join(lines)
