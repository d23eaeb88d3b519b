// Characters as images of 28 x 28 pixels, white on black: real ones, from classes that no network saw, and drawn ones.

import { child, shuffled } from "./dom.js";

export const SIDE = 28;
const LEVELS = 4; // of grey
// As the pad of lesson 06 draws (mebqat_lite/course/widgets/drawing.py): the longest side and the pen's radius in pixels.
const LENGTH = 17.5, RADIUS = 0.75, GAP = 0.2;

export class Glyphs {
  constructor(about, pixels) {
    Object.assign(this, about, { pixels });
  }

  // Read the sheet of images, which has a row for each class.
  static async load(about, url) {
    const sheet = child(new DocumentFragment(), "img", { src: url });
    await sheet.decode();
    const canvas = child(new DocumentFragment(), "canvas", { width: sheet.width, height: sheet.height });
    const draw = canvas.getContext("2d");
    draw.drawImage(sheet, 0, 0);
    return new Glyphs(about, draw.getImageData(0, 0, sheet.width, sheet.height));
  }

  // An image of a class, 784 numbers from 0 to 1.
  image(label, number) {
    const { data, width } = this.pixels;
    return Float32Array.from({ length: SIDE * SIDE }, (_, i) => {
      const x = number * SIDE + (i % SIDE), y = label * SIDE + Math.floor(i / SIDE);
      return data[4 * (y * width + x)] / 255;
    });
  }

  // A task of `ways` classes: an example of each, and a question { image, label } for each number of a class in `asked`.
  task(ways, asked, draw) {
    const classes = shuffled(this.classes, draw).slice(0, ways);
    const other = () => 1 + Math.floor(draw() * (this.images - 1));
    return {
      examples: classes.map((label) => this.image(label, 0)),
      questions: asked.map((label) => ({ label, image: this.image(classes[label], other()) })),
    };
  }

  // A task that asks once for each class, in order.
  whole(ways, draw) {
    return this.task(ways, Array.from({ length: ways }, (_, label) => label), draw);
  }
}

// Draw an image into a new canvas, black on white.
export function picture(parent, image, labels = {}) {
  const canvas = child(parent, "canvas", { width: SIDE, height: SIDE, className: "play-glyph" }, labels);
  const shown = new ImageData(SIDE, SIDE);
  image.forEach((value, i) => shown.data.set([...Array(3).fill(255 - Math.round(255 * value)), 255], 4 * i));
  canvas.getContext("2d").putImageData(shown, 0, 0);
  return canvas;
}

// Images as one array, for a network.
export function batch(images) {
  const values = new Float32Array(images.length * SIDE * SIDE);
  images.forEach((image, i) => values.set(image, i * SIDE * SIDE));
  return [values, [images.length, 1, SIDE, SIDE]];
}

// For each query the number of the nearest example, from the embeddings of the examples and, behind them, the queries.
export function nearest(embeddings, ways, queries) {
  const size = embeddings.length / (ways + queries);
  const far = (query, example) => {
    let sum = 0;
    for (let i = 0; i < size; i++) sum += (embeddings[(ways + query) * size + i] - embeddings[example * size + i]) ** 2;
    return sum;
  };
  return Array.from({ length: queries }, (_, query) => {
    const distances = Array.from({ length: ways }, (_, example) => far(query, example));
    return distances.indexOf(Math.min(...distances));
  });
}

// The content of a box of the pad as an image, or null if it is empty: pixels, or strokes [x, y, x, y, ...] in 0 .. 1.
export function imageOf({ strokes, pixels }) {
  if (strokes.length) return render(strokes);
  return pixels ? Float32Array.from(pixels, (digit) => Number(digit) / (LEVELS - 1)) : null;
}

// An image as the content of a box.
export function boxOf(image) {
  return { strokes: [], pixels: Array.from(image, (value) => Math.round(value * (LEVELS - 1))).join("") };
}

// Strokes as a glyph is drawn: scaled to `LENGTH` pixels and centred, with a round pen and four levels of grey.
function render(strokes) {
  const points = strokes.map((line) => Array.from({ length: line.length / 2 }, (_, i) => [line[2 * i], line[2 * i + 1]]));
  const ends = [0, 1].map((axis) => {
    const all = points.flat().map((point) => point[axis]);
    return [Math.min(...all), Math.max(...all)];
  });
  const scale = LENGTH / Math.max(...ends.map(([low, high]) => high - low), 1e-6);
  const place = (point) => point.map((value, axis) => (value - (ends[axis][0] + ends[axis][1]) / 2) * scale + SIDE / 2);
  const dots = points.flatMap((line) => dense(line.map(place)));
  return Float32Array.from({ length: SIDE * SIDE }, (_, i) => {
    const x = (i % SIDE) + 0.5, y = Math.floor(i / SIDE) + 0.5;
    const far = Math.sqrt(dots.reduce((least, dot) => Math.min(least, (dot[0] - x) ** 2 + (dot[1] - y) ** 2), Infinity));
    const ink = Math.min(Math.max(RADIUS + 0.5 - far, 0), 1);
    return Math.round(ink * (LEVELS - 1)) / (LEVELS - 1);
  });
}

// Points along a line, at most `GAP` pixels apart.
function dense(line) {
  const found = [line[0]];
  for (let i = 1; i < line.length; i++) {
    const [from, to] = [line[i - 1], line[i]];
    const count = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) / GAP));
    for (let n = 1; n <= count; n++) found.push(from.map((value, axis) => value + ((to[axis] - value) * n) / count));
  }
  return found;
}
