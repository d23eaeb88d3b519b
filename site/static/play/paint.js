// Networks that have learned a photograph paint it side by side, at the bits of a slider.

import { child, slider } from "./dom.js";
import { bitsOf } from "./networks.js";

const PAUSE = 500; // milliseconds without a move, after which the slider is said to rest

// A network and its picture. It is painted in few pixels first, and then in all of them, which are kept.
class Painter {
  constructor(parent, title, about, task) {
    Object.assign(this, { title, about, task, painted: new Map(), seen: () => {} });
    const figure = child(parent, "figure", { className: "play-painting" });
    child(figure, "figcaption", { textContent: title }).style.borderColor = about.color;
    this.canvas = child(figure, "canvas", { width: task.side, height: task.side }, { role: "img" });
    this.words = child(figure, "p", { textContent: " " });
  }

  async load(networks) {
    this.networks = networks;
    this.url = await networks.load(this.about.file);
  }

  // Show what the network paints at a pair; fulfilled when all of it is there, or when another pair is wanted instead.
  show(pair) {
    this.seen();
    Object.assign(this, { wanted: pair, rests: false });
    return new Promise((resolve, reject) => {
      this.seen = resolve;
      this.draw();
      this.begin().catch(reject);
    });
  }

  // Paint the other stops until another pair is wanted, so that they are there at once when they are wanted.
  ahead() {
    this.rests = true;
    this.begin();
  }

  begin() {
    return this.work ??= this.paint().finally(() => { this.work = null; });
  }

  async paint() {
    for (let next; (next = this.next()); this.draw()) {
      const { pair, side } = next, shape = [side ** 2, 2];
      const colours = await this.networks.run(this.url, this.task.places[side], shape, bitsOf(pair));
      this.painted.set(pair, { pair, side, colours });
    }
  }

  // What is to be painted: the pair that is wanted, and then, while the slider rests, the other stops.
  next() {
    const { side, few, pairs } = this.task, known = this.painted.get(this.wanted)?.side;
    if (known !== side) return { pair: this.wanted, side: known ? side : few };
    const pair = this.rests && pairs.find((one) => this.painted.get(one)?.side !== side);
    return pair ? { pair, side } : null;
  }

  draw() {
    const picture = this.painted.get(this.wanted);
    if (!picture) return;
    if (this.shown !== picture) this.put(picture);
    if (picture.side === this.task.side) this.seen();
  }

  put(picture) {
    this.shown = picture;
    const { pair, side, colours } = picture, image = new ImageData(side, side);
    for (let i = 0; i < colours.length; i++) {
      image.data[4 * Math.floor(i / 3) + (i % 3)] = Math.round(255 * Math.min(Math.max(colours[i], 0), 1));
    }
    for (let i = 3; i < image.data.length; i += 4) image.data[i] = 255;
    Object.assign(this.canvas, { width: side, height: side });
    this.canvas.getContext("2d").putImageData(image, 0, 0);
    this.canvas.dataset.drawn = pair;
    if (side === this.task.side) this.judge(pair, colours);
    else this.words.textContent = "…";
  }

  // Say how near the picture of a pair is to the photograph.
  judge(pair, colours) {
    const { photo } = this.task;
    const error = colours.reduce((sum, colour, i) => sum + (colour - photo[i]) ** 2, 0);
    const psnr = (-10 * Math.log10(error / colours.length)).toFixed(1);
    this.words.textContent = `${psnr} dB`;
    this.canvas.dataset.pair = pair;
    this.canvas.setAttribute("aria-label", `${this.title} at ${pair}: ${psnr} dB`);
  }
}

// The coordinates of all pixels, (side side, 2), from -1 to 1, x first.
function coordinates(side) {
  const middle = (i) => ((i + 0.5) * 2) / side - 1;
  const places = new Float32Array(2 * side * side);
  for (let i = 0; i < side * side; i++) places.set([middle(i % side), middle(Math.floor(i / side))], 2 * i);
  return places;
}

// Show the stored pictures. It returns two functions, `live(networks)`, which lets networks paint instead, and `still()`,
// which shows the stored pictures of few bits; and `rested`, fulfilled when the slider rests for the first time.
export async function paint(parent, about, folder) {
  const { side, stops, start, still } = about;
  const few = side / 2, places = { [side]: coordinates(side), [few]: coordinates(few) };
  const task = { side, few, places, pairs: stops.map((stop) => stop.pair) };
  const photo = fetch(`${folder}photo.bin`).then((answer) => answer.arrayBuffer());
  let timer, rest;
  const rested = new Promise((resolve) => { rest = resolve; });
  const ahead = () => {
    painters.forEach((painter) => painter.ahead());
    rest();
  };
  const show = async (stop) => {
    clearTimeout(timer);
    await Promise.all(painters.map((painter) => painter.show(stop.pair)));
    clearTimeout(timer);
    timer = setTimeout(ahead, PAUSE);
  };
  const { input, set } = slider(parent, "Bits of weights and activations", stops, task.pairs.indexOf(start), show);
  input.disabled = true;
  const row = child(parent, "div", { className: "play-row" });
  const painters = Object.entries(about.networks).map(([title, one]) => new Painter(row, title, one, task));
  const sheet = child(new DocumentFragment(), "img", { src: `${folder}paint.png` });
  await sheet.decode();
  const stored = (pair) => painters.forEach(({ canvas, title }, i) => {
    Object.assign(canvas, { width: side, height: side });
    canvas.getContext("2d").drawImage(sheet, -i * side, pair === start ? 0 : -side);
    canvas.setAttribute("aria-label", `${title} at ${pair}, a stored picture`);
  });
  stored(start);
  performance.mark("stored"); // for `python -m benchmarks.front_page`
  return {
    rested,
    async live(networks) {
      task.photo = new Float32Array(await photo);
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
