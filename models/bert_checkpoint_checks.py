"""What a BERT checkpoint's tensors and vocabulary must be."""

import collections
from collections.abc import Mapping

import numpy as np

from models import bert_checkpoint_files

CheckpointError = bert_checkpoint_files.CheckpointError
HEAD = 'cls.predictions.'
_DECODER = HEAD + 'decoder.'
_SPECIAL_TOKENS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]')


def tie_decoder(
  tensors: dict[str, np.ndarray], source: str
) -> dict[str, np.ndarray]:
  """Takes out the copies that some files hold of tied tensors."""
  weight = tensors.pop(_DECODER + 'weight', None)
  bias = tensors.pop(_DECODER + 'bias', None)
  if bias is not None:
    tensors.setdefault(HEAD + 'bias', bias)
  embedding = tensors.get('embeddings.word_embeddings.weight')
  if weight is not None and not np.array_equal(weight, embedding):
    raise CheckpointError(
      f'{source}: {_DECODER}weight is not the token embedding, as it is in '
      f'BERT; without the tensors {HEAD}* the encoder alone can be read'
    )
  return tensors


def check_tensors(
  tensors: Mapping[str, np.ndarray],
  shapes: Mapping[str, tuple[int, ...]],
  source: str,
) -> None:
  """Raises CheckpointError unless the tensors are those of BERT."""
  for name, shape in shapes.items():
    if name not in tensors:
      raise CheckpointError(f'{source} lacks the tensor {name} {list(shape)}')
    found = tensors[name].shape
    if found != shape:
      raise CheckpointError(
        f'{source}: the tensor {name} has the shape {list(found)}, where its '
        f'configuration asks for {list(shape)}'
      )
    if not np.isfinite(tensors[name]).all():
      raise CheckpointError(
        f'{source}: {name} holds values that are not finite'
      )
  # More layers than the configuration says, relative positions, adapters.
  more = sorted(
    name
    for name in tensors
    if name.startswith(('embeddings.', 'encoder.'))
    and name not in shapes
    and not name.endswith('.position_ids')
  )
  if more:
    raise CheckpointError(
      f'{source} has the tensor {more[0]} ({len(more)} such), which BERT with '
      'its configuration does not have'
    )


def check_vocabulary(tokens: tuple[str, ...], size: int, source: str) -> None:
  """Raises CheckpointError unless the tokens are BERT's, as many as asked."""
  if len(tokens) != size:
    raise CheckpointError(
      f'{source}: its vocabulary has {len(tokens)} tokens, where its '
      f'configuration asks for {size}'
    )
  if len(set(tokens)) != size:
    (twice, _), *_ = collections.Counter(tokens).most_common(1)
    raise CheckpointError(f'{source}: its vocabulary has {twice!r} twice')
  lost = [token for token in _SPECIAL_TOKENS if token not in tokens]
  if lost:
    raise CheckpointError(f'{source}: its vocabulary lacks {", ".join(lost)}')
