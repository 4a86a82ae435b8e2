"""Exported forms side by side, for people: what the model card says of them."""

from collections.abc import Mapping
from typing import Any

from research.export import form_examples

_UNKNOWN = ''


def table(
  reports: Mapping[str, Any],
) -> tuple[list[str], list[list[str]]]:
  """A header and a row for each form.

  Args:
    reports: Of `form_exporter.export`, by name.
  """
  sizes = _sizes(reports)
  latencies = [f'ms for {size} (p50, p99)' for size in sizes]
  header = [
    'form',
    'bytes',
    'gzip',
    'max difference',
    'agreement',
    _quality(reports),
  ]
  rows = []
  for name, report in reports.items():
    rows.append(
      [
        f'`{name}`' if report['passed'] else f'`{name}` **failed**',
        _shown(report.get('bytes'), ','),
        _shown(report.get('gzip_bytes'), ','),
        _shown(report.get('max_abs_difference'), '.2g'),
        _shown(report.get('agreement'), '.4f'),
        _shown(report.get('accuracy', report.get('rmse')), '.4g'),
        *(_latency(report, size) for size in sizes),
        report.get('runtime', _UNKNOWN),
      ]
    )
  return [*header, *latencies, 'run by'], rows


def explanations(reports: Mapping[str, Any]) -> list[str]:
  """What the table's numbers are, and failures, as paragraphs."""
  failed = [
    f'**Form `{name}` fails its check**: {"; ".join(report["reasons"])}.'
    for name, report in reports.items()
    if not report['passed']
  ]
  judged = [r for r in reports.values() if 'agreement' in r]
  if not judged:
    return failed
  report = judged[0]
  text = (
    f'Each was run on {report["examples"]:,} test examples, on one thread of '
    'the CPU, by a program that shares no code with the training. Agreement is '
  )
  if 'rmse' in report:
    error = _shown(report['model_rmse'], '.4g')
    text += (
      'R^2 with the predictions of the trained model, whose own root mean '
      f"square error is {error}; differences are in the targets' units."
    )
  else:
    text += 'the share of answers that are those of the trained model'
    if 'model_accuracy' in report:
      accuracy = _shown(report['model_accuracy'], '.4g')
      text += f', whose own accuracy there is {accuracy}'
    text += '.'
  if 'model_agreement' in report:
    shown = _shown(report['model_agreement'], '.4f')
    text += (
      f' The trained model has {shown} with itself when the ranges of its '
      f'activations are wider by {form_examples.WIDENING:g}: of a runtime that '
      'rounds in another way not much more can be expected.'
    )
  return [*failed, text]


def notes(reports: Mapping[str, Any]) -> list[str]:
  """What each form is, as one paragraph with a list."""
  lines = []
  for name, report in reports.items():
    line = f'- `{name}`: {report["title"]}, in `{report["file"]}`'
    if 'calibration' in report:
      line += f'; ranges of activations: {report["calibration"]}'
    if 'bound' in report:
      line += f'; bound: {report["bound"]}'
    if 'calibration' in report and 'operations' in report:
      line += f'; operations: {_operations(report["operations"])}'
    lines.append(f'{line}.')
  return ['\n'.join(lines)]


def _operations(counts: Mapping[str, Mapping[str, int]]) -> str:
  """Counts by dtype, as `int8 4 CONV_2D, 2 RESHAPE; float32 1 SOFTMAX`."""
  by_dtype = {}
  for name, found in counts.items():
    for dtype, count in found.items():
      by_dtype.setdefault(dtype, []).append(f'{count} {name}')
  return '; '.join(
    f'{dtype} {", ".join(by_dtype[dtype])}' for dtype in sorted(by_dtype)
  )


def _quality(reports: Mapping[str, Any]) -> str:
  is_number = any('rmse' in report for report in reports.values())
  return 'test RMSE' if is_number else 'test accuracy'


def _sizes(reports: Mapping[str, Any]) -> list[str]:
  found = {size for r in reports.values() for size in r.get('latency', {})}
  return sorted(found, key=int)


def _latency(report: Mapping[str, Any], size: str) -> str:
  found = report.get('latency', {}).get(size)
  if not found:
    return _UNKNOWN
  return ', '.join(milliseconds(found[name]) for name in ('p50_ms', 'p99_ms'))


def milliseconds(value: float) -> str:
  """A latency for people; small models take microseconds."""
  return f'{value:.2f}' if value >= 0.1 else f'{value:.2g}'


def _shown(value: Any, form: str) -> str:
  # Numbers that are none are texts in a model card.
  return (
    format(value, form)
    if isinstance(value, int | float)
    else (_UNKNOWN if value is None else str(value))
  )
