"""The model card: what a model is, where it comes from and how to use it.

The idea is of Mitchell et al. 2019 (arXiv:1810.03993); here it states only what
the run knows of itself.
"""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.export import forms_table, parity
from research.privacy import guarantee
from research.training import atomic

JSON_FILE = 'model_card.json'
MARKDOWN_FILE = 'model_card.md'
NO_PRIVACY = 'none: no differential privacy'

_IMPORT_TEXT = 'import tensorflow_text  # the operations of the tokeniser'
_TEXT = 'A charming film, [MASK] from its first minute to its last.'

_REQUIRED = ('name', 'task', 'data', 'flags', 'metrics', 'versions', 'parity')
_REQUIRED_DATA = ('title', 'licence', 'citation', 'url', 'sha256')


def write(directory: atomic.Path, info: Mapping[str, Any]) -> None:
  """Writes model_card.json and model_card.md, each complete or not at all.

  Args:
    directory: Where to; also where the model is, under `info['model']`.
    info: Describes the model by
      name: Of the model or its run.
      task: What was learned.
      data: title, licence, citation, url and sha256 of the data, and more.
      flags: The flags of the run.
      metrics: The last measurements.
      versions: Of the software.
      parity: The report of `parity.check`.
      forms (optional): The reports of `form_exporter.export`.
      signatures (optional): As in `saved_model.Exported`.
      model (optional): The SavedModel's path from `directory`; 'model' if
        absent.
      privacy (optional): The content of privacy.json, with that of audit.json
        as `audit` if there is one; without it the card says that there is no
        privacy.
      Other keys (as parameters or git_revision) are listed as they are.

  Raises:
    ValueError: If one of the keys is absent; it names it.
  """
  missing = [key for key in _REQUIRED if key not in info]
  missing += [
    f'data.{key}' for key in _REQUIRED_DATA if key not in info.get('data', {})
  ]
  if missing:
    raise ValueError(f'the model card lacks {", ".join(missing)}')
  card = {'model': 'model', 'signatures': {}, 'privacy': NO_PRIVACY, **info}
  card = _plain(card)
  directory = pathlib.Path(directory)
  atomic.write_json(directory / JSON_FILE, card)
  atomic.write_text(directory / MARKDOWN_FILE, _markdown(card))


def _plain(value: Any) -> Any:
  """Turns a value into what JSON has; numbers that are none become text."""
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple | set | frozenset):
    items = sorted(value) if isinstance(value, set | frozenset) else value
    return [_plain(item) for item in items]
  if isinstance(value, np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  if value is None or isinstance(value, bool | int | float | str):
    return value
  return str(value)


def _markdown(card: Mapping[str, Any]) -> str:
  shown = {'name', 'model', 'signatures', 'privacy', 'forms', *_REQUIRED}
  overview = {
    'task': card['task'],
    **{key: value for key, value in card.items() if key not in shown},
    'privacy': _privacy(card['privacy']),
  }
  sections = [
    f'# Model card: {card["name"]}',
    _table(('', ''), overview.items()),
    *_privacy_sections(card['privacy']),
    '## Data',
    _table(('', ''), card['data'].items()),
    '## Metrics',
    _table(('metric', 'value'), card['metrics'].items()),
    '## Use',
    *_use(card),
    _signatures(card['signatures']),
    f'P{parity.summary(card["parity"])[1:]}.',
    *_forms(card.get('forms', {})),
    '## Flags',
    _table(('flag', 'value'), _flags(card['flags'])),
    '## Versions',
    _table(('', 'version'), card['versions'].items()),
  ]
  return '\n\n'.join(section for section in sections if section) + '\n'


def _privacy(privacy: Mapping[str, Any] | str) -> str:
  if isinstance(privacy, str):
    return privacy
  epsilon = guarantee.round_up(privacy['epsilon'])
  return f'({epsilon}, {privacy["delta"]:g})-{privacy["kind"]}; see below'


def _privacy_sections(privacy: Mapping[str, Any] | str) -> list[str]:
  if isinstance(privacy, str):
    return []
  parts = [privacy['statement']]
  audit = privacy.get('audit')
  if audit:
    parts.insert(0 if audit['is_violated'] else 1, audit['statement'])
  return ['## Privacy', *parts]


def _use(card: Mapping[str, Any]) -> list[str]:
  model = card['model']
  inputs = card['signatures'].get('serving_default', {}).get('inputs', {})
  unknown = {'image': {'shape': [None, 28, 28, 1], 'dtype': 'uint8'}}
  ((name, spec),) = (inputs or unknown).items()
  if spec['dtype'] == 'string':
    return _use_of_texts(model, name)
  example = f'tf.zeros({[1, *spec["shape"][1:]]}, tf.{spec["dtype"]})'
  return [
    f'The SavedModel in `{model}/` needs TensorFlow alone (or OpenVINO):',
    _example(model, name, example),
  ]


def _use_of_texts(model: str, name: str) -> list[str]:
  """How to run a model whose tokeniser is inside."""
  text = f'tf.constant(["{_TEXT}"])'
  load = f'tf.saved_model.load("{model}").signatures["serving_default"]'
  return [
    f'The SavedModel in `{model}/` takes texts; its tokeniser is inside. It '
    'needs TensorFlow and TensorFlow Text of the same version, which must be '
    'imported first:',
    _example(model, name, text.replace('"', "'"), _IMPORT_TEXT),
    'In one line:',
    '```sh\n'
    "python -c 'import tensorflow_text, tensorflow as tf; "
    f"print({load}({name}={text}))'\n"
    '```',
    'With saved_model_cli, which knows the operations of texts only so:',
    '```sh\n'
    'python -c "import sys, tensorflow_text; from tensorflow.python.tools '
    'import saved_model_cli; sys.exit(saved_model_cli.main())" '
    f'run --dir {model} --tag_set serve --signature_def serving_default '
    f"""--input_exprs '{name}=["{_TEXT}"]'\n"""
    '```',
    f'`{model}/token_ids/` is the same model on token ids (`serve_token_ids`) '
    'for runtimes without operations on texts: it needs TensorFlow alone (or '
    'OpenVINO).',
  ]


def _forms(reports: Mapping[str, Any]) -> list[str]:
  if not reports:
    return []
  header, rows = forms_table.table(reports)
  return [
    '## Forms',
    *forms_table.explanations(reports),
    _table(header, rows),
    *forms_table.notes(reports),
  ]


def _example(model: str, name: str, value: str, first: str = '') -> str:
  """Lines that load the model and run it on one example."""
  return '\n'.join(
    (
      '```python',
      *([first] if first else []),
      'import tensorflow as tf',
      f"model = tf.saved_model.load('{model}')",
      "serve = model.signatures['serving_default']",
      f'{name} = {value}',
      f'print(serve({name}={name}))',
      '```',
    )
  )


def _signatures(signatures: Mapping[str, Any]) -> str:
  rows = [
    (signature, direction, name, spec['dtype'], spec['shape'])
    for signature, described in signatures.items()
    for direction in ('inputs', 'outputs')
    for name, spec in described[direction].items()
  ]
  return _table(('signature', '', 'name', 'dtype', 'shape'), rows)


def _flags(flags: Mapping[str, Any]):
  return [(f'--{name}', value) for name, value in flags.items()]


def _table(header, rows) -> str:
  """A Markdown table; nothing if there are no rows."""
  rows = list(rows)
  if not rows:
    return ''
  lines = [header, ['---'] * len(header), *rows]
  return '\n'.join(f'| {" | ".join(map(_cell, line))} |' for line in lines)


def _cell(value: Any) -> str:
  return ' '.join(str(value).replace('|', '\\|').split())
