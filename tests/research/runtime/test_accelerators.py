"""What is said about accelerators, with probes that find what we like."""

import pytest

from research.runtime import accelerators

NOTHING = accelerators.Accelerators()
GPU = accelerators.Accelerators(gpus=('GPU:0',), traces=('/dev/nvidia0',))
TPU = accelerators.Accelerators(tpus=('TPU:0',))
BOTH = accelerators.Accelerators(gpus=('GPU:0',), tpus=('TPU:0',))
UNSEEN = accelerators.Accelerators(traces=('/dev/nvidia0',))
HIDDEN = accelerators.Accelerators(traces=('/dev/nvidia0',), hidden=True)


def probe(devices=(), files=(), smi=(), environment=None):
  return accelerators.probe(
    device_names=lambda kind: [name for name in devices if kind in name],
    exists=lambda path: path in files,
    nvidia_smi=lambda: smi,
    environment=environment or {},
  )


def test_a_probe_tells_what_tensorflow_sees_from_what_is_there():
  assert probe() == NOTHING
  assert probe(
    ['GPU:0', 'TPU:0'], ['/dev/nvidia0']
  ) == accelerators.Accelerators(('GPU:0',), ('TPU:0',), ('/dev/nvidia0',))
  assert probe(files=['/dev/nvidia0']) == UNSEEN
  assert probe(smi=['GPU 0: H100']).traces == ('GPU 0: H100',)
  assert probe(['GPU:0'], smi=['GPU 0: H100']).traces == ()


@pytest.mark.parametrize(
  'value, hidden', [('-1', True), ('', True), ('0', False), (None, False)]
)
def test_an_environment_that_hides_gpus_is_noticed(value, hidden):
  environment = {} if value is None else {'CUDA_VISIBLE_DEVICES': value}
  assert probe(environment=environment).hidden == hidden


@pytest.mark.parametrize(
  'device, found, expected',
  [
    ('auto', NOTHING, 'cpu'),
    ('auto', UNSEEN, 'cpu'),
    ('auto', GPU, 'gpu'),
    ('auto', TPU, 'tpu'),
    ('auto', BOTH, 'gpu'),
    ('tpu', BOTH, 'tpu'),
    ('cpu', BOTH, 'cpu'),
  ],
)
def test_auto_takes_what_is_there(device, found, expected):
  assert accelerators.resolve(device, found) == expected
  if expected != 'cpu':
    assert accelerators.resolve(device, found, require=True) == expected


@pytest.mark.parametrize(
  'device, require, found, message',
  [
    ('gpu', False, NOTHING, 'sees neither a GPU nor a TPU. .*research.doctor'),
    ('gpu', False, TPU, 'TensorFlow sees TPU:0. .*make env EXTRAS=gpu'),
    ('tpu', False, GPU, '--device=tpu: TensorFlow sees GPU:0'),
    ('gpu', False, UNSEEN, 'although there is /dev/nvidia0'),
    ('gpu', False, HIDDEN, 'CUDA_VISIBLE_DEVICES hides the GPU'),
    ('auto', True, NOTHING, '--require_accelerator: the work would run on the'),
    ('auto', True, UNSEEN, 'although there is /dev/nvidia0'),
    ('cpu', True, GPU, 'contradicts --device=cpu'),
  ],
)
def test_what_is_not_there_is_refused(device, require, found, message):
  with pytest.raises(accelerators.AcceleratorError, match=message):
    accelerators.resolve(device, found, require)


@pytest.mark.parametrize(
  'found, device, part',
  [
    (GPU, 'cpu', 'on the CPU: TensorFlow sees GPU:0, unused. Because.'),
    (TPU, 'cpu', 'TensorFlow sees TPU:0, unused'),
    (UNSEEN, 'cpu', 'although there is /dev/nvidia0. `python -m research.doc'),
    (HIDDEN, 'cpu', None),
    (NOTHING, 'cpu', None),
    (GPU, 'gpu', None),
    (TPU, 'tpu', None),
  ],
)
def test_an_idle_accelerator_is_told_of(found, device, part):
  warning = accelerators.idle_warning(found, device, 'Because.')
  assert (warning is None) if part is None else (part in warning)


@pytest.mark.parametrize(
  'device, environment, expected',
  [
    ('cpu', {}, True),
    ('gpu', {}, False),
    ('gpu', {'TF_DETERMINISTIC_OPS': '0'}, False),
    ('gpu', {'TF_DETERMINISTIC_OPS': '1'}, True),
    ('tpu', {'TF_DETERMINISTIC_OPS': 'true'}, True),
  ],
)
def test_where_bits_repeat(device, environment, expected):
  assert accelerators.is_deterministic(device, environment) is expected
