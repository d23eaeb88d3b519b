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

async function main() {
  const about = await (await fetch(`${FOLDER}play.json`)).json();
  const seed = Number(new URLSearchParams(location.search).get("seed") ?? Date.now() % 1e6);
  const [painting, glyphs] = await Promise.all([
    paint(place("paint"), about.paint, FOLDER),
    Glyphs.load({ ...about.glyphs, seed }, `${FOLDER}glyphs.png`),
  ]);
  const loaded = (async () => {
    const networks = new Networks();
    await painting.live(networks);
    performance.mark("painted"); // for `python -m benchmarks.front_page`
    return networks;
  })();
  task(place("task"), glyphs, about.learn, loaded, seed);
  try {
    await drawing(place("draw"), glyphs, about.learn, await loaded);
  } catch (error) {
    painting.still();
    say("paint", error);
    say("draw", error);
  }
  document.documentElement.dataset.play = "ready";
}

main();
