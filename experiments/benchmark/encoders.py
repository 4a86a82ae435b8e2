"""The encoders that workloads F and G fine-tune, with random weights.

Random, so that nothing is downloaded; what a step costs is the same.
"""

import functools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from models import bert, bert_checkpoint, quantization

FORMS: Mapping[str, bert_checkpoint.Config] = {
  # all-MiniLM-L6 (Wang et al. 2020, arXiv:2002.10957).
  'minilm': bert_checkpoint.Config(
    vocabulary_size=30522,
    num_layers=6,
    num_heads=12,
    hidden_size=384,
    intermediate_size=1536,
  ),
  'tiny': bert_checkpoint.Config(
    vocabulary_size=50,
    num_layers=2,
    num_heads=2,
    hidden_size=8,
    intermediate_size=16,
    max_positions=12,
  ),
}
LENGTHS: Mapping[str, int] = {'minilm': 64, 'tiny': 6}
CLASSES = 2
LORA = bert.FineTuning('lora', lora_rank=4, lora_targets=('query', 'value'))


@functools.lru_cache(1)
def builder(form: str, fine_tuning: str) -> bert.Builder:
  """Makes an encoder without dropout, or returns it if it was the last.

  Args:
    form: A key of `FORMS`.
    fine_tuning: `lora` or `full`.
  """
  config = FORMS[form]
  vocabulary = [str(token) for token in range(config.vocabulary_size)]
  return bert.Builder(
    bert.initialise(config, vocabulary, seed=0),
    fine_tuning=LORA if fine_tuning == 'lora' else bert.FineTuning(),
    dropout=0.0,
  )


def build(
  form: str,
  fine_tuning: str,
  settings: quantization.Settings | None = None,
) -> tf.keras.Model:
  """Builds a classifier of tokens' means; see `builder`."""
  made = builder(form, fine_tuning)
  if settings is not None:
    made = made.quantized(settings)
  return made.classifier(CLASSES)


def draw(
  form: str, shape: tuple[int, int], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Draws texts without padding, and labels.

  Args:
    form: A key of `FORMS`.
    shape: Clients, and examples of each.
    rng: Where random numbers come from.

  Returns:
    Token ids x, int32 [clients, examples, length], and y, int32 [clients,
    examples].
  """
  vocabulary = FORMS[form].vocabulary_size
  x = rng.integers(1, vocabulary, (*shape, LENGTHS[form]), np.int32)
  return x, rng.integers(0, CLASSES, shape, np.int32)
