"""The flags of quantization-aware training; see `models.quantization`."""

from absl import flags

from models import quantization
from research import flag_values, statistics_flags
from research.quantization import coverage
from research.tasks import task as task_lib

FLAGS = flag_values.FLAGS
NONE, QAT = 'none', 'qat'
# Where the first batch may not say it: TF-MOT's own.
_INITIAL_RANGE = 6.0
_NAMES = (
  'weight_bits',
  'per_channel_weights',
  'symmetric_weights',
  'initial_range',
  'float_layers',
)


class QuantizationFlags:
  """Whether and how clients train a quantized model."""

  def __init__(self):
    usual = quantization.Settings()
    flag_values.enum(
      'quantize',
      NONE,
      [NONE, QAT],
      'qat trains with quantized weights and activations.',
    )
    flag_values.enum(
      'weight_bits',
      str(usual.weight_bits),
      list(map(str, quantization.WEIGHT_BITS)),
      'Of a weight in training; 6 and 4 are exported in int8 files.',
    )
    for name, text in (
      (
        'per_channel_weights',
        'A scale per output channel of convolutions; of dense layers in BERT.',
      ),
      ('symmetric_weights', 'Zero is the middle of the range of weights.'),
    ):
      flag_values.define('boolean', name, getattr(usual, name), text)
    flag_values.define(
      'float',
      'initial_range',
      None,
      'Activations are first quantized from minus to plus this; 0 takes the '
      f'first batch. {_INITIAL_RANGE:g} with privacy or --secure_sum, else 0.',
      lower_bound=0.0,
    )
    flag_values.define(
      'list',
      'float_layers',
      [],
      'Layers with weights that may stay float, by name.',
    )

  def apply(self, task: task_lib.Task) -> task_lib.Task:
    """Returns the task with a quantized model, if the flags ask for it.

    Prints what is quantized and what is not.

    Raises:
      ValueError: If the model does not allow it, or a layer with weights would
        stay float that --float_layers does not name.
    """
    if FLAGS.quantize == NONE:
      flag_values.refuse_unused(_NAMES, 'without --quantize=qat')
      return task
    task = task.quantized(self.settings())
    report = coverage.of(task.build_keras_model())
    report.check(FLAGS.float_layers)
    print(report.text(), flush=True)
    return task

  def settings(self) -> quantization.Settings:
    """Returns how the model is quantized."""
    initial = FLAGS.initial_range
    if initial is None:
      hidden = statistics_flags.is_part_of_update()
      initial = _INITIAL_RANGE if hidden else 0.0
    if statistics_flags.is_part_of_update() and not initial:
      raise flags.IllegalFlagValueError(
        '--initial_range=0: a range that begins with the first batch moves '
        'farther than privacy or --secure_sum can clip; give the range that '
        'you expect.'
      )
    return quantization.Settings(
      weight_bits=int(FLAGS.weight_bits),
      per_channel_weights=FLAGS.per_channel_weights,
      symmetric_weights=FLAGS.symmetric_weights,
      initial_range=initial,
    )
