// The front page: networks whose bits are inputs, in the browser. It begins to load them while the page is read.

import { start as drawing } from "./draw.js";
import { Glyphs } from "./glyphs.js";
import { Networks } from "./networks.js";
import { paint } from "./paint.js";
import { start as task } from "./task.js";

const FOLDER = new URL("./", import.meta.url).href;
const place = (name) => document.getElementById(`play-${name}`);

// Say in a part of the page that its networks do not run, and why.
function say(name, error) {
  const words = Object.assign(document.createElement("p"), { className: "play-missing" });
  words.textContent = `The networks do not run here: ${error.message}. In the lessons they do.`;
  place(name).append(words);
}

// Load the runtime and the networks that paint.
async function open(about) {
  const networks = new Networks(), { paint } = await about;
  await Promise.all(Object.values(paint.networks).map(({ file }) => networks.load(file)));
  return networks;
}

// Fulfilled when all elements of the page are there; the scripts that it defers may come later.
function elements() {
  return new Promise((resolve) => {
    const look = () => document.readyState !== "loading" && resolve();
    document.addEventListener("readystatechange", look);
    look();
  });
}

async function main() {
  const told = fetch(`${FOLDER}play.json`).then((answer) => answer.json());
  const opened = open(told);
  opened.catch(() => {}); // it is said below
  await elements();
  const about = await told, seed = Number(new URLSearchParams(location.search).get("seed") ?? Date.now() % 1e6);
  const [painting, glyphs] = await Promise.all([
    paint(place("paint"), about.paint, FOLDER),
    Glyphs.load({ ...about.glyphs, seed }, `${FOLDER}glyphs.png`),
  ]);
  const live = (async () => {
    const networks = await opened;
    await painting.live(networks);
    performance.mark("painted"); // for `python -m benchmarks.front_page`
    return networks;
  })();
  task(place("task"), glyphs, about.learn, live, seed);
  try {
    const networks = await live;
    await painting.rested; // until then the workers paint
    await drawing(place("draw"), glyphs, about.learn, networks);
  } catch (error) {
    painting.still();
    say("paint", error);
    say("draw", error);
  }
  document.documentElement.dataset.play = "ready";
}

main();
