// The reader's own characters: networks learn them from one example each, at the bits of two sliders.

import { child, random, slider } from "./dom.js";
import { batch, boxOf, imageOf, nearest } from "./glyphs.js";
import { kernels } from "./kernels.js";
import { FULL } from "./networks.js";
import pad from "./drawing.js";

const NAMES = ["A", "B", "C", "D", "E"];
const TASKS = 40, WAYS = 20, T = 2.023; // T: of Student's distribution, 95 %, for 39 degrees of freedom

// What the pad of lesson 06 expects to talk to: boxes, and who wants to know when they change.
class Boxes {
  constructor(parent, names, hint) {
    this.state = { boxes: names.map(() => ({ strokes: [], pixels: "" })), names, shots: 1, hint };
    this.listeners = [];
    pad.render({ model: this, el: parent });
  }

  get(name) { return this.state[name]; }
  set(name, value) { this.state[name] = value; this.listeners.forEach((act) => act()); }
  on(_, act) { this.listeners.push(act); }
  off() {}
  send() {}
  save_changes() {}
}

class Draw {
  constructor(parent, glyphs, about, networks) {
    Object.assign(this, { about, networks, glyphs });
    this.titles = Object.keys(about.networks);
    this.widths = [...about.widths, FULL];
    child(parent, "p", { textContent: "An example of each character, which the networks learn from:" });
    this.examples = new Boxes(child(parent, "div", { className: "play-pad" }), NAMES, "");
    child(parent, "p", { textContent: "The same characters once more, in the same order:" });
    this.queries = new Boxes(child(parent, "div", { className: "play-pad" }), NAMES.map((name) => `${name} again`),
      "Draw with mouse, finger or pen; × empties a box. By keys: Tab to a box, arrows move the pen, Space sets it " +
      "down and lifts it, Delete empties the box.");
    const row = child(parent, "div", { className: "play-buttons" });
    const button = (words, act) => child(row, "button", { type: "button", textContent: words, onclick: act,
      className: "play-button" });
    button("Other characters", () => this.fill());
    button("Clear all", () => this.empty());
    this.sliders(child(parent, "div", { className: "play-sliders" }));
    child(parent, "p", { textContent: "The activations follow the weights; move them afterwards. Where weights are at full " +
      "precision, so are activations." });
    this.words = child(parent, "p", { className: "play-words" }, { "aria-live": "polite" });
    this.grid = child(parent, "div", { className: "play-wide" });
    new Count(child(parent, "div"), this);
    this.kernels = kernels(parent, about.kernels);
    this.draw = random(glyphs.seed);
    this.fill();
    for (const boxes of [this.examples, this.queries]) boxes.on("change", () => { this.read(); this.update(); });
    this.read();
  }

  // A slider of the weights' bits and one of the inputs'. At full-precision weights the inputs are at full precision.
  sliders(parent) {
    const stops = this.widths.map((bits) => ({ bits, words: bits === FULL ? "full precision" : `${bits} bits` }));
    this.bits = { w: 2, a: 2 };
    slider(parent, "Bits of weights", stops, 0, ({ bits }) => {
      this.bits = { w: bits, a: bits };
      inputs.set(this.widths.indexOf(bits));
      inputs.input.disabled = bits === FULL;
      this.update();
    });
    const inputs = slider(parent, "Bits of activations", stops, 0, ({ bits }) => {
      this.bits = { ...this.bits, a: bits };
      this.update();
    });
  }

  fill() {
    const { examples, questions } = this.glyphs.whole(NAMES.length, this.draw);
    this.put(examples.map(boxOf), questions.map(({ image }) => boxOf(image)));
  }

  empty() {
    const none = NAMES.map(() => ({ strokes: [], pixels: "" }));
    this.put(none, none);
  }

  put(examples, queries) {
    this.examples.set("boxes", examples);
    this.queries.set("boxes", queries);
  }

  // Read the boxes: the columns that have an example, those of them that are asked for, and the images of both.
  read() {
    const examples = this.examples.get("boxes").map(imageOf), queries = this.queries.get("boxes").map(imageOf);
    const learned = NAMES.map((_, i) => i).filter((i) => examples[i]);
    const asked = learned.filter((i) => queries[i]);
    const images = [...learned.map((i) => examples[i]), ...asked.map((i) => queries[i])];
    const lost = NAMES.filter((_, i) => queries[i] && !examples[i]).map((name) => ` ${name} again has no example.`);
    this.task = { learned, asked, images, lost: lost.join(""), answers: new Map() };
  }

  // Ask each network at each pair, once: a letter for each character that is asked for.
  async ask({ learned, asked, images, answers }, pairs) {
    const [values, shape] = batch(images);
    await Promise.all(this.titles.map(async (title) => {
      const url = await this.networks.load(this.about.networks[title].file);
      for (const bits of pairs.filter((pair) => !answers.has(key(title, pair)))) {
        const out = await this.networks.run(url, values, shape, bits);
        answers.set(key(title, bits), nearest(out, learned.length, asked.length).map((i) => NAMES[learned[i]]));
      }
    }));
  }

  // Show the answers to what is drawn now. More may be drawn while they are computed.
  update() {
    this.isStale = true;
    this.work ??= this.showAll().finally(() => { this.work = null; });
    return this.work;
  }

  async showAll() {
    while (this.isStale) {
      this.isStale = false;
      await this.show();
    }
  }

  async show() {
    const { task, bits } = this;
    this.kernels.show(bits.w);
    if (task.learned.length < 2 || !task.asked.length) {
      this.grid.replaceChildren();
      this.words.textContent = `Draw examples of at least two characters, and one of them again.${task.lost}`;
      return;
    }
    const equal = this.widths.toReversed().map((width) => ({ w: width, a: width }));
    await this.ask(task, [bits, ...equal]);
    const truth = task.asked.map((i) => NAMES[i]);
    this.table([bits, ...equal], task.answers, truth);
    const said = this.titles.map((title) => firstChange(title, equal, task.answers, truth));
    this.words.textContent = `${said.join(" ")}${task.lost}`;
  }

  table(columns, answers, truth) {
    const grid = child(new DocumentFragment(), "table", { className: "play-answers" });
    const head = child(child(grid, "thead"), "tr");
    child(head, "th", { textContent: "bits" });
    const chosen = (i) => (i ? "" : "play-chosen"); // the first column is that of the sliders
    columns.forEach((bits, i) => child(head, "th", { textContent: named(bits), className: chosen(i) }));
    const body = child(grid, "tbody");
    for (const title of this.titles) {
      const row = child(body, "tr"), { color, bytes } = this.about.networks[title];
      child(row, "th", { textContent: title }, { scope: "row" }).style.borderColor = color;
      for (const [i, bits] of columns.entries()) {
        const cell = child(row, "td", { className: chosen(i) });
        const said = answers.get(key(title, bits)), right = said.filter((name, i) => name === truth[i]).length;
        said.forEach((name, i) => child(cell, name === truth[i] ? "span" : "mark", { textContent: name }));
        child(cell, "small", { textContent: `${right} of ${truth.length}` });
        child(cell, "small", { textContent: `${(bytes[bits.w] / 1000).toFixed(1)} kB` });
      }
    }
    this.grid.replaceChildren(grid);
  }
}

// Both networks on many tasks of twenty real characters each, at the bits of the sliders.
class Count {
  constructor(parent, draw) {
    this.draw = draw;
    const act = () => this.run().finally(() => { this.button.disabled = false; });
    this.button = child(parent, "button", { type: "button", className: "play-button", onclick: act,
      textContent: `Count over ${TASKS} tasks of ${WAYS} real characters` });
    this.words = child(parent, "p", {}, { "aria-live": "polite" });
  }

  async run() {
    const { titles, bits } = this.draw, scores = titles.map(() => []), random20 = random(0);
    this.button.disabled = true;
    for (let n = 1; n <= TASKS; n++) {
      const task = this.draw.glyphs.whole(WAYS, random20);
      const found = await Promise.all(titles.map((title) => this.score(title, bits, task)));
      found.forEach((score, i) => scores[i].push(score));
      this.words.textContent = `${n} of ${TASKS} tasks are done.`;
    }
    this.words.textContent = compared(titles, bits, scores);
  }

  // The right answers of a network in percent.
  async score(title, bits, { examples, questions }) {
    const { networks, about } = this.draw, url = await networks.load(about.networks[title].file);
    const images = [...examples, ...questions.map(({ image }) => image)];
    const answers = nearest(await networks.run(url, ...batch(images), bits), WAYS, WAYS);
    return (100 * answers.filter((answer, i) => answer === questions[i].label).length) / WAYS;
  }
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

// The mean scores in words, and the paired difference with its 95 % interval over the tasks.
function compared(titles, bits, scores) {
  const gaps = scores[1].map((score, i) => score - scores[0][i]), gap = mean(gaps);
  const half = T * Math.sqrt(mean(gaps.map((one) => (one - gap) ** 2)) / (TASKS - 1));
  const each = titles.map((title, i) => `${title} ${mean(scores[i]).toFixed(0)} %`).join(", ");
  const told = Math.abs(gap) > half ? "" : ": they are not told apart";
  const words = `${gap > 0 ? "+" : ""}${gap.toFixed(1)} ±${half.toFixed(1)} points`;
  return `${each} of the characters right at ${named(bits)} bits, chance is 5 %. Difference ${words}${told}.`;
}

// Where the answers of a network first differ from its own at full precision, and how.
function firstChange(title, [full, ...others], answers, truth) {
  const before = answers.get(key(title, full)), said = (bits) => answers.get(key(title, bits));
  const first = others.find((bits) => said(bits).join() !== before.join());
  if (!first) return `${title} answers at every width as at full precision.`;
  const how = truth.flatMap((name, i) => {
    const [was, is] = [before[i], said(first)[i]];
    return was === is ? [] : [`${name} turns ${is === name ? "right" : was === name ? "wrong" : "into another mistake"}`];
  });
  return `${title} changes its answers first at ${first.w} bits: ${how.join(", ")}.`;
}

const key = (title, { w, a }) => `${title} W${w}A${a}`;

function named({ w, a }) {
  const words = (bits) => (bits === FULL ? "FP" : String(bits));
  return w === a ? words(w) : `${words(w)} / ${words(a)}`;
}

// Show the pad and, once the networks are there, their answers.
export async function start(parent, glyphs, about, networks) {
  await new Draw(parent, glyphs, about, networks).update();
}
