"""The page of experiments/serve.py in a real Chromium without a window."""

import math
import shutil

import numpy as np
import pytest
import tensorflow as tf

from research.export import saved_model
from tests.experiments import server
from tests.research.export import conftest as export_conftest
from tests.research.export import text_tasks
from tests.research.serving import conftest as serving_conftest

BROWSER, DRIVER = 'chromium', 'chromedriver'
WAIT_SECONDS = 20
# A phone.
WIDTH, HEIGHT = 390, 844
SIDE = 28

needs_browser = pytest.mark.skipif(
  not (shutil.which(BROWSER) and shutil.which(DRIVER)),
  reason='chromium or chromedriver missing',
)


def write_form(task, model, spec, serve, directory):
  """Writes a run with a SavedModel and, as its int8 form, a .tflite file."""
  saved_model.export(task, model, directory / 'model' / '1')
  function = tf.function(serve, input_signature=[spec], autograph=False)
  converter = tf.lite.TFLiteConverter.from_concrete_functions(
    [function.get_concrete_function()], model
  )
  (directory / 'forms').mkdir()
  file = directory / 'forms' / 'tflite_int8.tflite'
  file.write_bytes(converter.convert())


def bright_half_model():
  """Class 0: more light in the upper half; 1: in the lower half."""
  model = tf.keras.Sequential(
    [
      tf.keras.Input([SIDE, SIDE, 1]),
      tf.keras.layers.Flatten(),
      tf.keras.layers.Dense(2, use_bias=False),
    ]
  )
  kernel = np.zeros([SIDE, SIDE, 2], np.float32)
  kernel[: SIDE // 2, :, 0] = kernel[SIDE // 2 :, :, 1] = 0.1
  model.set_weights([kernel.reshape(-1, 2)])
  return model


@pytest.fixture(scope='module')
def drawings(tmp_path_factory):
  """Serves a classifier of drawings and a form that says the opposite."""
  directory = tmp_path_factory.mktemp('runs') / 'drawings'
  task = export_conftest.make_task(shape=(SIDE, SIDE, 1), num_classes=2)
  task.class_names = ('up', '<b>down</b>')
  model = bright_half_model()

  def serve(image):
    logits = -model(tf.cast(image, tf.float32) / 255)
    return {'logits': logits, 'probabilities': tf.nn.softmax(logits)}

  spec = tf.TensorSpec([1, SIDE, SIDE, 1], tf.uint8, 'image')
  write_form(task, model, spec, serve, directory)
  with server.running(directory) as running:
    yield running


@pytest.fixture(scope='module')
def texts(tmp_path_factory):
  """Serves a classifier of texts and the same on token ids."""
  directory = tmp_path_factory.mktemp('runs') / 'texts'
  task = text_tasks.make()
  model = text_tasks.trained(task)

  def serve(token_ids):
    logits = model(token_ids)
    return {'logits': logits, 'probabilities': tf.nn.softmax(logits)}

  spec = tf.TensorSpec([1, task.max_length], tf.int32, 'token_ids')
  write_form(task, model, spec, serve, directory)
  with server.running(directory) as running:
    yield running


@pytest.fixture
def browser(tmp_path):
  from selenium import webdriver

  options = webdriver.ChromeOptions()
  options.binary_location = shutil.which(BROWSER)
  for argument in (
    '--headless=new',
    # As root, and where /dev/shm is small.
    '--no-sandbox',
    '--disable-dev-shm-usage',
    '--disable-gpu',
    f'--user-data-dir={tmp_path / "profile"}',
    f'--window-size={WIDTH},{HEIGHT}',
  ):
    options.add_argument(argument)
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  service = webdriver.ChromeService(shutil.which(DRIVER))
  driver = webdriver.Chrome(options, service)
  try:
    yield driver
    complaints = [
      entry for entry in driver.get_log('browser') if entry['level'] == 'SEVERE'
    ]
    assert not complaints
  finally:
    driver.quit()


def element(browser, name):
  from selenium.webdriver.common.by import By

  return browser.find_element(By.ID, name)


def wait(browser, condition):
  from selenium.webdriver.support import ui

  return ui.WebDriverWait(browser, WAIT_SECONDS).until(condition)


def wait_for(browser, name):
  return wait(
    browser,
    lambda _: (
      element(browser, name) if element(browser, name).is_displayed() else None
    ),
  )


def table(browser):
  """The heads and the rows of the result, as text."""
  return browser.execute_script("""
    const texts = (all) => [...all].map((each) => each.textContent);
    const rows = document.querySelectorAll('#rows tr');
    return [texts(document.querySelectorAll('#heads th')),
      [...rows].map((row) => texts(row.children))];
  """)


def stroke(browser, *places):
  """Draws with the mouse through places of [-0.5, 0.5] on the canvas."""
  from selenium.webdriver.common.action_chains import ActionChains

  canvas = wait_for(browser, 'canvas')
  width, height = canvas.size['width'], canvas.size['height']
  points = [(round(x * width), round(y * height)) for x, y in places]
  chain = ActionChains(browser, duration=20)
  chain.move_to_element_with_offset(canvas, *points[0]).click_and_hold()
  for point in points[1:]:
    chain.move_to_element_with_offset(canvas, *point)
  chain.release().perform()


def seen(browser):
  """What the model sees: float64 [28, 28] in [0, 255]."""
  pixels = browser.execute_script("""
    const seen = document.getElementById('seen');
    const {width, height} = seen;
    return [...seen.getContext('2d').getImageData(0, 0, width, height).data];
  """)
  return np.array(pixels, float).reshape(SIDE, SIDE, 4)[:, :, 0]


@needs_browser
def test_a_drawing_is_classified(drawings, browser):
  """A T has its bar above the centre of its mass, a turned one below."""
  browser.get(drawings.url)
  for bar, stem in ((-0.3, 0.3), (0.3, -0.3)):
    wait_for(browser, 'clear').click()
    assert not element(browser, 'results').is_displayed()
    stroke(browser, (-0.3, bar), (0.3, bar))
    stroke(browser, (0, bar), (0, stem))
    wait_for(browser, 'results')
    wait(browser, lambda _: seen(browser).any())
    image = seen(browser)
    rows, columns = np.nonzero(image > 32)
    assert 18 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 22
    middle = [
      (image.sum(axis=axis) * (np.arange(SIDE) + 0.5)).sum() / image.sum()
      for axis in (0, 1)
    ]
    assert middle == pytest.approx([SIDE / 2, SIDE / 2], abs=0.5)
    body = {'instances': [image.astype(int)[:, :, None].tolist()]}
    _, answer = drawings.request('/v1/models/drawings:predict', body)
    up, down = answer['predictions'][0]['probabilities']
    names = {'up': up, '<b>down</b>': down}
    best = max(names, key=names.get)
    other = min(names, key=names.get)

    def shown(pairs):
      return [f'{name}: {100 * p:.1f} %' for name, p in pairs]

    # The form says the opposite, and is sorted by what it says.
    wanted = [
      shown([(best, names[best]), (other, names[best])]),
      shown([(other, names[other]), (best, names[other])]),
    ]
    wait(browser, lambda _, w=wanted: table(browser)[1] == w)
    assert table(browser)[0] == ['float', 'int8']


@needs_browser
def test_dark_ink_turns_the_image_around(drawings, browser):
  browser.get(drawings.url)
  stroke(browser, (-0.3, 0), (0.3, 0))
  wait(browser, lambda _: seen(browser).any())
  light = seen(browser)
  element(browser, 'dark').click()
  wait(browser, lambda _: seen(browser)[0, 0] == 255)
  np.testing.assert_array_equal(seen(browser), 255 - light)


@needs_browser
@pytest.mark.parametrize(
  'text',
  [
    pytest.param('the film is fine', id='plain'),
    pytest.param('naïve 汉 <i>😀</i>', id='unicode'),
  ],
)
def test_a_sentence_is_classified(texts, browser, text):
  browser.get(texts.url)
  field = wait_for(browser, 'text')
  # The driver types characters of 16 bits alone.
  browser.execute_script('arguments[0].value = arguments[1]', field, text)
  element(browser, 'classify').click()
  wait_for(browser, 'results')
  _, answer = texts.request('/v1/models/texts:predict', {'instances': [text]})
  (found,) = answer['predictions']
  heads, rows = table(browser)
  assert heads == ['float', 'int8']
  for column in (0, 1):
    label, _, probability = rows[0][column].partition(': ')
    assert label == found['label']
    percent = float(probability.removesuffix(' %'))
    assert math.isclose(percent, 100 * found['probability'], abs_tol=0.06)


@needs_browser
def test_the_page_fits_a_phone_and_has_names_for_all_it_has(drawings, browser):
  """No sideways scrolling; whoever can't see the page hears what is there."""
  browser.get(drawings.url)
  canvas = wait_for(browser, 'canvas')
  widths = browser.execute_script(
    'return [document.documentElement.scrollWidth, window.innerWidth]'
  )
  assert widths[0] <= widths[1]
  assert canvas.accessible_name.startswith('Drawing area')
  for name, wanted in {
    'clear': 'Clear',
    'dark': 'dark ink on white (EMNIST of TFF)',
  }.items():
    assert element(browser, name).accessible_name == wanted
  origins = browser.execute_script("""
    return performance.getEntriesByType('resource').map(
      (entry) => new URL(entry.name).origin);
  """)
  assert origins and set(origins) == {drawings.url}


@needs_browser
def test_what_is_no_classifier_says_so(tmp_path, browser):
  serving_conftest.export(
    serving_conftest.regression_task(), tmp_path / 'table' / 'model' / '1'
  )
  with server.running(tmp_path / 'table') as running:
    browser.get(running.url)
    wait(
      browser,
      lambda _: '/v1/models/table:predict' in element(browser, 'message').text,
    )
    assert not element(browser, 'drawing').is_displayed()
    assert not element(browser, 'writing').is_displayed()
