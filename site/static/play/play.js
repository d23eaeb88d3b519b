// The front page: networks whose bits are inputs, in the browser.

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

// Begin to load the runtime and the networks that paint, before anything else is there.
async function open(files) {
  const networks = new Networks();
  await Promise.all(files.map((file) => networks.load(file)));
  return networks;
}

async function main() {
  const about = await (await fetch(`${FOLDER}play.json`)).json();
  const seed = Number(new URLSearchParams(location.search).get("seed") ?? Date.now() % 1e6);
  const opened = open(Object.values(about.paint.networks).map(({ file }) => file));
  opened.catch(() => {}); // it is said below
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
    await drawing(place("draw"), glyphs, about.learn, await live);
  } catch (error) {
    painting.still();
    say("paint", error);
    say("draw", error);
  }
  document.documentElement.dataset.play = "ready";
}

main();
