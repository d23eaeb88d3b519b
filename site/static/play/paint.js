// Networks that have learned a photograph paint it side by side, at the bits of a slider.

import { child, slider } from "./dom.js";
import { bitsOf } from "./networks.js";

// A network and its picture. What it painted once is kept, and while nothing is wanted it paints the other stops.
class Painter {
  constructor(parent, title, about, task) {
    Object.assign(this, { title, about, task, painted: new Map(), seen: () => {} });
    const figure = child(parent, "figure", { className: "play-painting" });
    child(figure, "figcaption", { textContent: title }).style.borderColor = about.color;
    this.canvas = child(figure, "canvas", { width: task.side, height: task.side }, { role: "img" });
    this.words = child(figure, "p", { textContent: " " });
  }

  async load(networks) {
    this.networks = networks;
    this.url = await networks.load(this.about.file);
  }

  // Show what the network paints at a pair; fulfilled when it is there, or when another pair is wanted instead.
  show(pair) {
    this.wanted = pair;
    this.draw();
    this.work ??= this.paint().finally(() => { this.work = null; });
    return new Promise((resolve) => { this.seen = resolve; this.draw(); });
  }

  async paint() {
    for (let pair; (pair = this.next()); this.draw()) {
      const shape = [this.task.side ** 2, 2];
      this.painted.set(pair, await this.networks.run(this.url, this.task.places, shape, bitsOf(pair)));
    }
  }

  // What is wanted, and then the other stops, so that they are there at once when they are wanted.
  next() {
    return [this.wanted, ...this.task.pairs].find((pair) => !this.painted.has(pair));
  }

  draw() {
    const colours = this.painted.get(this.wanted);
    if (!colours) return;
    if (this.shown !== this.wanted) this.put(colours);
    this.seen();
  }

  put(colours) {
    this.shown = this.wanted;
    const { side, photo } = this.task, image = new ImageData(side, side);
    let error = 0;
    for (let i = 0; i < colours.length; i++) {
      const value = Math.min(Math.max(colours[i], 0), 1), pixel = Math.floor(i / 3);
      image.data[4 * pixel + (i % 3)] = Math.round(255 * value);
      image.data[4 * pixel + 3] = 255;
      error += (colours[i] - photo[i]) ** 2;
    }
    this.canvas.getContext("2d").putImageData(image, 0, 0);
    const psnr = (-10 * Math.log10(error / colours.length)).toFixed(1);
    this.words.textContent = `${psnr} dB`;
    this.canvas.dataset.pair = this.wanted;
    this.canvas.setAttribute("aria-label", `${this.title} at ${this.wanted}: ${psnr} dB`);
  }
}

// The coordinates of all pixels, (side side, 2), from -1 to 1, x first.
function coordinates(side) {
  const middle = (i) => ((i + 0.5) * 2) / side - 1;
  const places = new Float32Array(2 * side * side);
  for (let i = 0; i < side * side; i++) places.set([middle(i % side), middle(Math.floor(i / side))], 2 * i);
  return places;
}

// Show the stored pictures. It returns two functions: `live(networks)` lets networks paint instead, and `still()` shows
// the stored pictures of few bits.
export async function paint(parent, about, folder) {
  const { side, stops, start, still } = about;
  const task = { side, places: coordinates(side), pairs: stops.map((stop) => stop.pair) };
  const show = (stop) => Promise.all(painters.map((painter) => painter.show(stop.pair)));
  const { input, set } = slider(parent, "Bits of weights and activations", stops, task.pairs.indexOf(start), show);
  input.disabled = true;
  const row = child(parent, "div", { className: "play-row" });
  const painters = Object.entries(about.networks).map(([title, one]) => new Painter(row, title, one, task));
  const sheet = child(new DocumentFragment(), "img", { src: `${folder}paint.png` });
  await sheet.decode();
  const stored = (pair) => painters.forEach(({ canvas, title }, i) => {
    canvas.getContext("2d").drawImage(sheet, -i * side, pair === start ? 0 : -side);
    canvas.setAttribute("aria-label", `${title} at ${pair}, a stored picture`);
  });
  stored(start);
  return {
    async live(networks) {
      task.photo = new Float32Array(await (await fetch(`${folder}photo.bin`)).arrayBuffer());
      await Promise.all(painters.map((painter) => painter.load(networks)));
      input.disabled = false;
      await show(stops[Number(input.value)]);
    },
    still() {
      set(task.pairs.indexOf(still));
      stored(still);
    },
  };
}
