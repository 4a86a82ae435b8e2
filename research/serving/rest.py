"""The REST API of TensorFlow Serving as a WSGI application.

Paths, requests and responses are those of
https://www.tensorflow.org/tfx/serving/api_rest; errors are {"error": "..."}.
Beside it are a page to try the model on, and the forms of the model under
/v1/forms/NAME:predict.
"""

import dataclasses
import functools
import importlib.resources
from collections.abc import Callable, Mapping

import numpy as np
import werkzeug
from absl import logging
from werkzeug import exceptions, routing

from research.serving import json_tensors, servable, tflite_form

_MODEL = '/v1/models/<name>'
_VERSION = '/v1/models/<name>/versions/<version>'
_VERBS = '<any(predict, classify, regress):verb>'
_METHODS = {
  'classify': 'tensorflow/serving/classify',
  'regress': 'tensorflow/serving/regress',
}
# How much larger an example may be than its JSON: -1 takes ten bytes.
_GROWTH = 4
_PAGE = {
  '/': ('index.html', 'text/html; charset=utf-8'),
  '/page.js': ('page.js', 'text/javascript; charset=utf-8'),
  '/page.css': ('page.css', 'text/css; charset=utf-8'),
}
# What the page may load: its own files alone.
_PAGE_HEADERS = {
  'Content-Security-Policy': "default-src 'none'; script-src 'self'; "
  "style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
  "form-action 'none'; frame-ancestors 'none'",
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-cache',
}


@dataclasses.dataclass(frozen=True)
class Limits:
  """What a request may ask for at most.

  Attributes:
    body_bytes: Size of its body.
    batch_size: Examples in it.
    length: Values along a dimension that the model leaves free, as token ids.
  """

  body_bytes: int = 4 * 2**20
  batch_size: int = 128
  length: int = 1024


class Application:
  """Answers requests; safe to call from many threads at once.

  Attributes:
    name: Of the model, in paths.
  """

  def __init__(
    self,
    name: str,
    versions: Mapping[int, servable.Servable],
    forms: Mapping[str, tflite_form.TfliteForm] | None = None,
    limits: Limits | None = None,
  ):
    """Takes what is served.

    Args:
      name: Of the model, in paths.
      versions: The loaded versions of the model; the latest one answers where
        a path names none.
      forms: Other forms of the model by name.
      limits: Of requests.
    """
    self.name = name
    self._versions = dict(versions)
    self._forms = dict(forms or {})
    self._limits = limits or Limits()
    folder = importlib.resources.files(__package__) / 'page'
    self._page = {
      path: ((folder / file).read_bytes(), content_type)
      for path, (file, content_type) in _PAGE.items()
    }
    self._rules = routing.Map(
      [
        *(_get(path, functools.partial(self._file, path)) for path in _PAGE),
        _get('/page.json', self._description),
        *(_get(base, self._status) for base in (_MODEL, _VERSION)),
        *(
          _get(f'{base}/metadata', self._metadata)
          for base in (_MODEL, _VERSION)
        ),
        *(_post(f'{base}:{_VERBS}', self._ask) for base in (_MODEL, _VERSION)),
        _post('/v1/forms/<name>:predict', self._ask_form),
      ],
      strict_slashes=False,
      merge_slashes=False,
    )

  def __call__(self, environ, start_response):
    """Answers one request of WSGI (PEP 3333)."""
    request = werkzeug.Request(environ)
    request.max_content_length = self._limits.body_bytes
    response = self._respond(request)
    return response(environ, start_response)

  def _respond(self, request: werkzeug.Request) -> werkzeug.Response:
    try:
      rule = self._rules.bind_to_environ(request.environ)
      endpoint, values = rule.match()
      answer = endpoint(request, **values)
    except json_tensors.RequestError as error:
      return _json({'error': str(error)}, 400)
    except exceptions.RequestEntityTooLarge:
      limit = self._limits.body_bytes
      return _json({'error': f'the body is larger than {limit} bytes'}, 413)
    except exceptions.HTTPException as error:
      response = _json({'error': _told(request, error)}, error.code)
      if isinstance(error, exceptions.MethodNotAllowed):
        response.headers['Allow'] = ', '.join(sorted(error.valid_methods or ()))
      return response
    except Exception:
      logging.exception('%s %s failed', request.method, request.path)
      return _json({'error': 'internal error; the log has the reason'}, 500)
    return answer if isinstance(answer, werkzeug.Response) else _json(answer)

  def _file(self, path: str, request) -> werkzeug.Response:
    content, content_type = self._page[path]
    return werkzeug.Response(
      content, headers=_PAGE_HEADERS, content_type=content_type
    )

  def _description(self, request):
    """What the page asks first."""
    return {
      'model': self.name,
      'version': str(max(self._versions)),
      'forms': list(self._forms),
    }

  def _status(self, request, name: str, version: str | None = None):
    found = self._find(name, version)
    shown = self._versions if version is None else [found]
    return {
      'model_version_status': [
        {
          'version': str(number),
          'state': 'AVAILABLE',
          'status': {'error_code': 'OK', 'error_message': ''},
        }
        for number in sorted(shown, reverse=True)
      ]
    }

  def _metadata(self, request, name: str, version: str | None = None):
    found = self._find(name, version)
    return {
      'model_spec': {
        'name': name,
        'signature_name': '',
        'version': str(found),
      },
      'metadata': {'signature_def': self._versions[found].metadata},
    }

  def _ask(self, request, name: str, verb: str, version: str | None = None):
    model = self._versions[self._find(name, version)]
    body = json_tensors.parse(request.get_data())
    signature = _signature(model, body)
    if verb == 'predict':
      return self._predict(signature, body)
    if signature.method != _METHODS[verb]:
      raise json_tensors.RequestError(
        f'signature {signature.name!r} is of the method {signature.method}; '
        f':{verb} needs one of {_METHODS[verb]}, by "signature_name"'
      )
    outputs = signature.run({'inputs': self._examples(body)})
    return {'results': _results(verb, outputs)}

  def _predict(self, signature: servable.Signature, body):
    if ('instances' in body) == ('inputs' in body):
      raise json_tensors.RequestError(
        "the request must have one of 'instances' and 'inputs'"
      )
    if 'instances' in body:
      self._check_batch(body['instances'])
      inputs = json_tensors.from_instances(body['instances'], signature.inputs)
      self._check_lengths(inputs, signature.inputs)
      return {'predictions': json_tensors.rows(signature.run(inputs))}
    inputs = json_tensors.from_inputs(body['inputs'], signature.inputs)
    for value in inputs.values():
      self._check_batch(value)
    self._check_lengths(inputs, signature.inputs)
    return {'outputs': json_tensors.columns(signature.run(inputs))}

  def _examples(self, body) -> np.ndarray:
    examples, context = body.get('examples'), body.get('context', {})
    if not isinstance(examples, list) or not examples:
      raise json_tensors.RequestError(
        "'examples' must be a list of objects that is not empty"
      )
    if not isinstance(context, dict):
      raise json_tensors.RequestError("'context' must be an object")
    self._check_batch(examples)
    made, size = [], 0
    for example in examples:
      made.append(json_tensors.to_example(example, context))
      size += len(made[-1])
      if size > _GROWTH * self._limits.body_bytes:
        raise json_tensors.RequestError(
          "'context' is too large for so many examples"
        )
    return np.array(made, object)

  def _ask_form(self, request, name: str):
    if name not in self._forms:
      raise exceptions.NotFound(
        f'no form {name!r}; there are: {", ".join(self._forms) or "none"}'
      )
    body = json_tensors.parse(request.get_data())
    instances = body.get('instances')
    self._check_batch(instances)
    return {'predictions': self._forms[name].predict(instances)}

  def _check_batch(self, batch) -> None:
    """Bounds a list or an array; what is neither is refused elsewhere."""
    if not isinstance(batch, list) and not np.ndim(batch):
      return
    if not 0 < len(batch) <= self._limits.batch_size:
      raise json_tensors.RequestError(
        f'{len(batch)} examples; a request must have 1 to '
        f'{self._limits.batch_size}'
      )

  def _check_lengths(self, inputs, specs) -> None:
    limit = self._limits.length
    for name, value in inputs.items():
      sizes = specs[name].shape.as_list()[1:]
      for free, size in zip(sizes, value.shape[1:], strict=True):
        if free is None and size > limit:
          raise json_tensors.RequestError(
            f'{name} has a length of {size}; {limit} is the most'
          )

  def _find(self, name: str, version: str | None) -> int:
    """The number of the version that a path names."""
    if name != self.name:
      raise exceptions.NotFound(
        f'Servable not found for request: Latest({name})'
      )
    if version is None:
      return max(self._versions)
    for number in self._versions:
      if version == str(number):
        return number
    raise exceptions.NotFound(
      f'Servable not found for request: Specific({name}, {version})'
    )


def _get(path: str, endpoint: Callable) -> routing.Rule:
  return routing.Rule(path, endpoint=endpoint, methods=['GET'])


def _post(path: str, endpoint: Callable) -> routing.Rule:
  return routing.Rule(path, endpoint=endpoint, methods=['POST'])


def _signature(model: servable.Servable, body) -> servable.Signature:
  name = body.get('signature_name', '')
  if not isinstance(name, str):
    raise json_tensors.RequestError("'signature_name' must be a string")
  name = name or servable.DEFAULT_SIGNATURE
  if name not in model.signatures:
    raise json_tensors.RequestError(
      f'Serving signature name: "{name}" not found in signature def; there are '
      f'{", ".join(model.signatures)}'
    )
  return model.signatures[name]


def _results(verb: str, outputs: Mapping[str, np.ndarray]):
  if verb == 'regress':
    return json_tensors.from_array(outputs['outputs'].reshape(-1), 'outputs')
  labels = json_tensors.from_array(outputs['classes'], 'classes')
  scores = json_tensors.from_array(outputs['scores'], 'scores')
  return [
    [list(pair) for pair in zip(*row, strict=True)]
    for row in zip(labels, scores, strict=True)
  ]


def _told(request: werkzeug.Request, error: exceptions.HTTPException) -> str:
  """What is wrong; the words of werkzeug are for pages, not for programs."""
  default = type(error).description
  if error.description and error.description != default:
    return error.description
  return f'Malformed request: {request.method} {request.path} ({error.name})'


def _json(value, status: int = 200) -> werkzeug.Response:
  return werkzeug.Response(
    json_tensors.dumps(value),
    status,
    content_type='application/json',
    headers={'X-Content-Type-Options': 'nosniff'},
  )
