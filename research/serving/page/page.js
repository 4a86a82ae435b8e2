'use strict';

const SHOWN = 3;
// MNIST's digits fill 20 of 28 pixels, their centre of mass in the middle.
const FILLED = 20 / 28;
const LEAST_SIDE_WITH_MARGIN = 20;
const WAIT_MILLISECONDS = 150;

const at = (id) => document.getElementById(id);
let model, input, forms, turn = 0;

function say(text) {
  at('message').textContent = text;
}

async function ask(path, body) {
  const options = body && {method: 'POST', body: JSON.stringify(body)};
  const response = await fetch(path, options);
  const answer = JSON.parse(await response.text());
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

async function start() {
  const page = await ask('/page.json');
  model = `/v1/models/${encodeURIComponent(page.model)}`;
  forms = page.forms;
  at('model').textContent = page.model;
  document.title = `Try ${page.model}`;
  const {metadata} = await ask(`${model}/metadata`);
  const signatures = metadata.signature_def.signature_def;
  const [[name, info]] = Object.entries(signatures.serving_default.inputs);
  const sizes = info.tensor_shape.dim.map((dim) => Number(dim.size)).slice(1);
  input = {name, sizes};
  const isImage = info.dtype === 'DT_UINT8' && sizes.length === 3;
  if (!signatures.classify || !(isImage || info.dtype === 'DT_STRING')) {
    say('This page is for models that classify images or texts. This one '
      + `answers requests at ${model}:predict.`);
    return;
  }
  say('');
  if (isImage) startDrawing(); else startWriting();
}

// Shows the answers of the float model and of each form side by side.
async function show(example, instance) {
  const mine = ++turn;
  const body = {signature_name: 'classify', examples: [example]};
  const [answer, ...others] = await Promise.all([
    ask(`${model}:classify`, body),
    ...forms.map(async (form) => ask(
      `/v1/forms/${encodeURIComponent(form)}:predict`,
      {instances: [await instance()]})),
  ]);
  // A later drawing may have been answered first.
  if (mine !== turn) return;
  const classes = answer.results[0];
  const columns = [['float', classes]];
  others.forEach((other, i) => {
    const scores = other.predictions[0].probabilities;
    columns.push([forms[i], scores.map((p, k) => [classes[k][0], p])]);
  });
  const best = columns.map(([, pairs]) => [...pairs].sort(
    (a, b) => b[1] - a[1]).slice(0, SHOWN));
  fill(at('heads'), columns.map(([name]) => cell('th', name, {scope: 'col'})));
  fill(at('rows'), best[0].map((_, i) => {
    const row = document.createElement('tr');
    fill(row, best.map((pairs) => cell(
      'td', `${pairs[i][0]}: ${(100 * pairs[i][1]).toFixed(1)} %`)));
    return row;
  }));
  at('results').hidden = false;
  say('');
}

function cell(kind, text, attributes = {}) {
  const made = document.createElement(kind);
  made.textContent = text;
  Object.entries(attributes).forEach(([k, v]) => made.setAttribute(k, v));
  return made;
}

function fill(parent, children) {
  parent.replaceChildren(...children);
}

function startWriting() {
  at('writing').hidden = false;
  at('form').addEventListener('submit', (event) => {
    event.preventDefault();
    const text = at('text').value;
    const instance = async () => (await ask(`${model}:predict`,
      {signature_name: 'tokenise', instances: [text]})).predictions[0];
    show({[input.name]: text}, instance).catch((error) => say(error.message));
  });
}

function startDrawing() {
  at('drawing').hidden = false;
  const canvas = at('canvas');
  const context = canvas.getContext('2d', {willReadFrequently: true});
  const [height, width] = input.sizes;
  at('seen').width = width;
  at('seen').height = height;
  Object.assign(context, {
    lineWidth: canvas.width / 12, lineCap: 'round', lineJoin: 'round',
    strokeStyle: '#fff',
  });
  let last = null, timer = null;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [(event.clientX - box.left) * canvas.width / box.width,
      (event.clientY - box.top) * canvas.height / box.height];
  };
  const draw = (event) => {
    const next = place(event);
    context.beginPath();
    context.moveTo(...last);
    context.lineTo(...next);
    context.stroke();
    last = next;
    clearTimeout(timer);
    timer = setTimeout(classify, WAIT_MILLISECONDS);
  };
  canvas.addEventListener('pointerdown', (event) => {
    canvas.setPointerCapture(event.pointerId);
    last = place(event);
    draw(event);
  });
  canvas.addEventListener('pointermove', (event) => last && draw(event));
  const lift = () => { last = null; };
  canvas.addEventListener('pointerup', lift);
  canvas.addEventListener('pointercancel', lift);
  at('clear').addEventListener('click', () => {
    clearTimeout(timer);
    context.clearRect(0, 0, canvas.width, canvas.height);
    at('seen').getContext('2d').clearRect(0, 0, width, height);
    at('results').hidden = true;
  });
  at('dark').addEventListener('change', () => inked(canvas) && classify());
  async function classify() {
    const ink = inked(canvas);
    if (!ink) return;
    const pixels = shrink(canvas, ink);
    const flat = pixels.flat(2);
    show({[input.name]: flat}, async () => pixels).catch(
      (error) => say(error.message));
  }
}

// Where the ink is: its box and its centre of mass; null for a blank canvas.
function inked(canvas) {
  const {width, height} = canvas;
  const {data} = canvas.getContext('2d').getImageData(0, 0, width, height);
  let left = width, right = -1, top = height, bottom = -1;
  let mass = 0, sumX = 0, sumY = 0;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const alpha = data[4 * (y * width + x) + 3];
      if (!alpha) continue;
      left = Math.min(left, x);
      right = Math.max(right, x);
      top = Math.min(top, y);
      bottom = Math.max(bottom, y);
      mass += alpha;
      sumX += alpha * (x + .5);
      sumY += alpha * (y + .5);
    }
  }
  if (!mass) return null;
  const side = Math.max(right - left, bottom - top) + 1;
  return {side, x: sumX / mass, y: sumY / mass,
    middleX: (left + right + 1) / 2, middleY: (top + bottom + 1) / 2};
}

// The drawing in the model's size: [height][width][channels], 0 to 255.
function shrink(canvas, ink) {
  const [height, width, channels] = input.sizes;
  const seen = at('seen').getContext('2d', {willReadFrequently: true});
  const side = Math.min(height, width);
  const hasMargin = side >= LEAST_SIDE_WITH_MARGIN;
  const scale = side * (hasMargin ? FILLED : 1) / ink.side;
  const x = hasMargin ? ink.x : ink.middleX;
  const y = hasMargin ? ink.y : ink.middleY;
  const isDark = at('dark').checked;
  seen.setTransform(1, 0, 0, 1, 0, 0);
  seen.fillStyle = '#000';
  seen.fillRect(0, 0, width, height);
  seen.imageSmoothingQuality = 'high';
  seen.drawImage(canvas, width / 2 - x * scale, height / 2 - y * scale,
    canvas.width * scale, canvas.height * scale);
  const image = seen.getImageData(0, 0, width, height);
  const pixels = [];
  for (let row = 0; row < height; row++) {
    const line = [];
    for (let column = 0; column < width; column++) {
      const place = 4 * (row * width + column);
      const value = isDark ? 255 - image.data[place] : image.data[place];
      image.data.fill(value, place, place + 3);
      line.push(new Array(channels).fill(value));
    }
    pixels.push(line);
  }
  seen.putImageData(image, 0, 0);
  return pixels;
}

start().catch((error) => say(error.message));
