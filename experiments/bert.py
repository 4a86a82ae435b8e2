"""Federated BERT: classifying texts, tagging words, guessing masked tokens.

LoRA on the sentences of product reviews, a client per review:

  python -m experiments.bert --dataset=amazon_reviews --fine_tuning=lora

Beside what every run leaves is report.json with precision and recall of each
class or kind of span, and a plot of what is taken for what.
"""

from collections.abc import Sequence

from absl import flags

from research import (
  cli,
  experiment,
  flag_values,
  quantization_flags,
  runtime_flags,
  text_flags,
)
from research import flags as flags_lib
from research.tasks import bert as tasks
from research.training import classification_report

BINARY = 'experiments.bert'

_TASK = flag_values.enum(
  'task', 'sequence_classification', tasks.TASKS, 'What is learned.'
)
_DATA = text_flags.DataFlags()
_MODEL = text_flags.ModelFlags()
_QUANTIZATION = quantization_flags.QuantizationFlags()
GROUPS = experiment.FlagGroups(
  algorithm=flags_lib.AlgorithmFlags(),
  training=flags_lib.TrainingFlags(total_rounds=100, client_batch_size=16),
  runtime=runtime_flags.RuntimeFlags(),
  output=flags_lib.OutputFlags(experiment_name='bert'),
)
flags.adopt_module_key_flags(flag_values)


def build_task() -> tasks.TextTask:
  """Builds the task that the flags describe."""
  return _QUANTIZATION.apply(
    _MODEL.build_task(_TASK.value, _DATA, flags.FLAGS.seed)
  )


def main(argv: Sequence[str]) -> None:
  """Trains, draws, exports, and reports by class."""
  flag_values.refuse_arguments(argv)
  flag_values.apply_from_config()
  with experiment.Experiment.start(BINARY, build_task, GROUPS) as run:
    print(run.task.lengths.line())
    if flags.FLAGS.dry_run:
      print(run.dry_run())
      return
    text_flags.keep_vocabulary(run.run.path, run.task.pieces)
    state = run.train()
    run.finish(state)
    run.loop.evaluator.set_weights(run.loop.process.get_model_weights(state))
    print(classification_report.write(run.run, run.task, run.loop.evaluator))


if __name__ == '__main__':
  cli.run(main)
