"""What TensorFlow Serving takes beside signatures of the predict kind.

`classify` and `regress` read serialised `tf.train.Example` and are marked for
its methods of these names; `tokenise` gives the token ids of texts; a file of
requests warms a new version up before it gets traffic.
"""

import os
import pathlib
from collections.abc import Mapping

import tensorflow as tf
from tensorflow.python.saved_model import fingerprinting_utils
from tensorflow_serving.apis import prediction_log_pb2

from research.export import graph_tokenizer, text_signatures
from research.tasks import task as task_lib

CLASSIFY = 'classify'
REGRESS = 'regress'
TOKENISE = 'tokenise'
# Names that TensorFlow Serving asks for; see its `signature_constants`.
METHODS = {
  CLASSIFY: 'tensorflow/serving/classify',
  REGRESS: 'tensorflow/serving/regress',
}
INPUTS, CLASSES, SCORES, OUTPUTS = 'inputs', 'classes', 'scores', 'outputs'
WARM_UP = pathlib.Path('assets.extra', 'tf_serving_warmup_requests')

_TEXT = 'A charming film.'
# An example has no list of bytes for pixels.
_IN_EXAMPLES = {tf.uint8: tf.int64}

Function = tf.types.experimental.ConcreteFunction


def trace(
  task: task_lib.Task, signatures: Mapping[str, Function]
) -> dict[str, Function]:
  """Makes the further signatures of a task, none for some kinds.

  `classify` (of classification) takes `inputs`, string [batch], each a
  serialised example with one feature that is named as the input of
  `serving_default` (pixels as int64 in [0, 255]), and gives `classes`, string
  [batch, classes], and `scores`, float32 [batch, classes], the probabilities.
  `regress` (of regression with one target) takes the same and gives `outputs`,
  float32 [batch, 1]. `tokenise` (of classification of texts) takes `text`,
  string [batch], and gives `token_ids`, int32 [batch, length].

  Args:
    task: The task.
    signatures: Those that it has.
  """
  serve = signatures[text_signatures.SERVING]
  traced = {}
  if task.kind == 'classification':
    traced[CLASSIFY] = _of_examples(
      serve, lambda outputs: _classes(task.class_names, outputs)
    )
    if text_signatures.is_text(task):
      traced[TOKENISE] = _tokenise(task)
  elif task.kind == 'regression' and len(task.data.target_names) == 1:
    traced[REGRESS] = _of_examples(
      serve, lambda outputs: {OUTPUTS: outputs['prediction']}
    )
  return traced


def finish(directory: pathlib.Path, signatures: Mapping[str, Function]) -> None:
  """Marks the signatures of a saved model, and writes the warm-up requests.

  Args:
    directory: The SavedModel.
    signatures: Those that were saved.
  """
  marked = [name for name in METHODS if name in signatures]
  if marked:
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(
      os.fspath(directory)
    )
    for name in marked:
      updater.replace_method_name(name, METHODS[name])
    updater.save()
    # There is no public way to renew the checksum of what was changed.
    fingerprinting_utils.write_fingerprint(os.fspath(directory))
  file = directory / WARM_UP
  file.parent.mkdir()
  with tf.io.TFRecordWriter(os.fspath(file)) as writer:
    for name, function in signatures.items():
      log = _warm_up(name, function, signatures[text_signatures.SERVING])
      writer.write(log.SerializeToString())


def _of_examples(serve: Function, shape_outputs) -> Function:
  """A signature that parses examples and hands them to `serve`."""
  (given,), _ = serve.structured_input_signature
  stored = _IN_EXAMPLES.get(given.dtype, given.dtype)
  features = {given.name: tf.io.FixedLenFeature(given.shape[1:], stored)}

  @tf.function(
    input_signature=[tf.TensorSpec([None], tf.string, INPUTS)], autograph=False
  )
  def run(inputs):
    parsed = tf.io.parse_example(inputs, features)[given.name]
    cast = parsed
    if stored != given.dtype:
      cast = tf.cast(parsed, given.dtype)
      tf.debugging.assert_equal(
        tf.cast(cast, stored),
        parsed,
        f'a value of {given.name} does not fit into {given.dtype.name}',
      )
    return shape_outputs(serve(cast))

  return run.get_concrete_function()


def _classes(names, outputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
  scores = outputs['probabilities']
  classes = tf.broadcast_to(tf.constant(names), tf.shape(scores))
  return {CLASSES: classes, SCORES: tf.identity(scores)}


def _tokenise(task: task_lib.Task) -> Function:
  tokenizer = graph_tokenizer.GraphTokenizer(task.pieces, task.max_length)
  spec = tf.TensorSpec([None], tf.string, text_signatures.TEXT)

  @tf.function(input_signature=[spec], autograph=False)
  def tokenise(text):
    return {text_signatures.TOKEN_IDS: tokenizer.encode(text)}

  return tokenise.get_concrete_function()


def _warm_up(
  name: str, function: Function, serve: Function
) -> prediction_log_pb2.PredictionLog:
  """A request with a batch of one for a signature."""
  log = prediction_log_pb2.PredictionLog()
  if name not in METHODS:
    request = log.predict_log.request
    (given,), _ = function.structured_input_signature
    value = tf.make_tensor_proto(_one(given))
    request.inputs[given.name].CopyFrom(value)
  else:
    of_method = {CLASSIFY: log.classify_log, REGRESS: log.regress_log}
    request = of_method[name].request
    (given,), _ = serve.structured_input_signature
    request.input.example_list.examples.append(example(given))
  request.model_spec.name = 'model'
  request.model_spec.signature_name = name
  return log


def example(spec: tf.TensorSpec) -> tf.train.Example:
  """An example with some value of an input's one feature."""
  feature, value = tf.train.Feature(), tf.reshape(_one(spec), [-1]).numpy()
  if spec.dtype == tf.string:
    feature.bytes_list.value.extend(value)
  elif spec.dtype.is_integer:
    feature.int64_list.value.extend(value)
  else:
    feature.float_list.value.extend(value)
  return tf.train.Example(
    features=tf.train.Features(feature={spec.name: feature})
  )


def _one(spec: tf.TensorSpec) -> tf.Tensor:
  """A batch of one; other unknown dimensions are one, too."""
  shape = [size or 1 for size in spec.shape]
  if spec.dtype == tf.string:
    return tf.fill(shape, _TEXT)
  return tf.ones(shape, spec.dtype)
