"""Attacks a finished run's model: does it tell who was trained on?

  python -m experiments.membership_inference --run_dir=runs/emnist

The members are the training clients' examples, the others the test examples.
Writes membership_inference.json and a plot into the run directory.
"""

from collections.abc import Sequence

from absl import flags

from research import cli, finished_run, flag_values
from research.privacy import membership_inference
from research.training import atomic, plots, run_directory

_RUN_DIR = flags.DEFINE_string(
  'run_dir', None, 'The run directory.', required=True
)


def _plot(report: membership_inference.Report, path) -> None:
  fig, axes = plots.new_figure(
    'Telling training examples from others',
    'others taken for members',
    'members recognised',
  )
  axes.plot(
    report.false_positive_rates,
    report.true_positive_rates,
    label=f'by the loss, AUC {report.auc:.3f}',
  )
  axes.plot([0, 1], [0, 1], color='grey', linestyle='--', label='guessing')
  axes.legend()
  plots.save(fig, path)


def main(argv: Sequence[str]) -> None:
  """Attacks, prints the result, and writes a JSON file and a plot."""
  flag_values.refuse_arguments(argv)
  run = finished_run.load(run_directory.RunDirectory.existing(_RUN_DIR.value))
  data = run.task.data
  report = membership_inference.attack(
    *(run.evaluator.per_example(s)['loss'] for s in (data.train, data.test))
  )
  path = run.path / 'membership_inference.json'
  plot = run.directory.plots / 'membership_inference.png'
  atomic.write_json(path, report.to_json())
  plot.parent.mkdir(exist_ok=True)
  _plot(report, plot)
  print(
    f'{run.path} after round {run.round_num}: {report.members} training and '
    f'{report.non_members} test examples'
  )
  print(f'AUC                 {report.auc:.4f}')
  print(f'attacker advantage  {report.attacker_advantage:.4f}')
  print(membership_inference.MEANING)
  print(f'report              {path}\nplot                {plot}')


if __name__ == '__main__':
  cli.run(main, flag_values.parse_with_run)
