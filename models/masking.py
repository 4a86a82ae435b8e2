"""Which tokens a masked language model has to guess.

Devlin et al. 2019 (arXiv:1810.04805), section 3.1: of each text 15 % of the
tokens are chosen; of these 80 % become [MASK], 10 % a random token, and 10 %
stay. Which ones follows from a seed and the batch, so that a resumed run and
another runtime mask the same ones, and a client's next epoch others.
"""

from collections.abc import Sequence

import tensorflow as tf

from models import layers

_CHOSEN, _MASKED, _RANDOM = 0.15, 0.8, 0.1
_RANGE = 2**32


def mask(
  tokens: tf.Tensor,
  *,
  mask_id: int,
  special_ids: Sequence[int],
  vocabulary_size: int,
  seed: int,
) -> tuple[tf.Tensor, tf.Tensor]:
  """Masks a batch.

  Args:
    tokens: int32 [batch, length].
    mask_id: Of [MASK].
    special_ids: Tokens that are never chosen.
    vocabulary_size: Tokens there are.
    seed: Of the choice.

  Returns:
    The tokens that the model gets, int32 [batch, length], and the labels: the
    token where one was chosen, else -1.
  """
  chosen = layers.random_bits(tokens, seed, tokens)
  fate = layers.random_bits(tokens, seed + 1, tokens)
  drawn = layers.random_bits(tokens, seed + 2, tokens)
  is_special = tf.reduce_any(
    tf.equal(tokens[..., tf.newaxis], tf.constant(special_ids, tokens.dtype)),
    axis=-1,
  )
  is_chosen = (chosen < int(_CHOSEN * _RANGE)) & ~is_special
  is_masked = fate < int(_MASKED * _RANGE)
  is_random = ~is_masked & (fate < int((_MASKED + _RANDOM) * _RANGE))
  words = tf.cast(drawn % vocabulary_size, tf.int32)
  hidden = tf.where(is_masked, mask_id, tf.where(is_random, words, tokens))
  return (
    tf.where(is_chosen, hidden, tokens),
    tf.where(is_chosen, tokens, -tf.ones_like(tokens)),
  )
