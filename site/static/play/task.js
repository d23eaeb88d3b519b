// The reader learns characters from one example each, and so do the networks: who knows them again?

import { child, random } from "./dom.js";
import { batch, nearest, picture } from "./glyphs.js";
import { bitsOf } from "./networks.js";

const ROUNDS = [{ ways: 5, count: 5 }, { ways: 20, count: 10 }];
const PAIRS = ["FP", "W2A2"];

// One question after another about `task`, beneath what was said before; it returns the reader's answers, each the
// number of an example.
async function ask(parent, task, before) {
  const { examples, questions } = task, answers = [];
  const asked = child(parent, "p", { className: "play-asked" }, { "aria-live": "polite" });
  const shown = child(parent, "div", { className: "play-question" });
  const buttons = child(parent, "div", { className: "play-examples" }, { role: "group", "aria-label": "the examples" });
  let answered = () => {};
  examples.forEach((image, i) => {
    const button = child(buttons, "button", { type: "button", onclick: () => answered(i) });
    button.setAttribute("aria-label", `example ${i + 1}`);
    picture(button, image);
    child(button, "small", { textContent: i + 1 });
  });
  for (const [number, { image }] of questions.entries()) {
    const said = number ? verdict(answers.at(-1), questions[number - 1].label) : before;
    asked.textContent = `${said} Question ${number + 1} of ${questions.length}: which is this one?`;
    shown.replaceChildren();
    picture(shown, image, { role: "img", "aria-label": "the character that is asked for" });
    answers.push(await new Promise((resolve) => { answered = resolve; }));
  }
  return answers;
}

function verdict(answer, label) {
  return answer === label ? "That was right." : `That was number ${label + 1}.`;
}

// What a network answers at a pair.
async function answer(networks, file, { examples, questions }, pair) {
  const images = [...examples, ...questions.map((question) => question.image)];
  const out = await networks.run(await networks.load(file), ...batch(images), bitsOf(pair));
  return nearest(out, examples.length, questions.length);
}

function right(answers, { questions }) {
  return answers.filter((answer, i) => answer === questions[i].label).length;
}

// The scores, a row for the reader and one for each network at each pair, a column for each round.
function table(parent, rows) {
  const grid = child(parent, "table", { className: "play-scores" });
  const head = child(child(grid, "thead"), "tr");
  for (const words of ["", ...ROUNDS.map(({ ways }) => `${ways} characters`)]) child(head, "th", { textContent: words });
  const body = child(grid, "tbody");
  for (const [who, color, scores] of rows) {
    const row = child(body, "tr");
    child(row, "th", { textContent: who }, { scope: "row" }).style.borderColor = color;
    scores.forEach((score, i) => child(row, "td", { textContent: `${score} of ${ROUNDS[i].count}` }));
  }
}

// The tasks of both rounds; a character may be asked for twice, so that the last one is no matter of elimination.
export function tasksOf(glyphs, seed) {
  const draw = random(seed);
  return ROUNDS.map(({ ways, count }) => {
    const asked = Array.from({ length: count }, () => Math.floor(draw() * ways));
    return glyphs.task(ways, asked, draw);
  });
}

async function play(parent, glyphs, about, networks, seed) {
  const tasks = tasksOf(glyphs, seed), yours = [];
  for (const [i, task] of tasks.entries()) {
    const last = tasks[i - 1];
    const before = last ? `${right(yours[i - 1], last)} of ${last.questions.length} were right. Now there are twenty.` : "";
    parent.replaceChildren();
    yours.push(await ask(parent, task, before));
  }
  parent.replaceChildren();
  const score = (answers) => answers.map((some, i) => right(some, tasks[i]));
  const rows = [["You", "transparent", score(yours)]];
  try {
    const ready = await networks;
    for (const [title, { file, color }] of Object.entries(about.networks)) {
      for (const pair of PAIRS) {
        const answers = await Promise.all(tasks.map((task) => answer(ready, file, task, pair)));
        rows.push([`${title}, ${pair === "FP" ? "full precision" : "2 bits"}`, color, score(answers)]);
      }
    }
  } catch (error) {
    child(parent, "p", { textContent: `The networks cannot answer here: ${error.message}.` });
  }
  table(parent, rows);
  child(parent, "p", { textContent: "Ten questions are few: one answer is ten points. The next figure counts over many tasks." });
  const again = child(parent, "button", { type: "button", className: "play-button", textContent: "Other characters" });
  again.onclick = () => play(parent, glyphs, about, networks, seed + 1);
  if (yours.length) again.focus({ preventScroll: true });
}

// `networks` is a promise of them: the reader's part needs none.
export function start(parent, glyphs, about, networks, seed) {
  const begin = child(parent, "button", { type: "button", className: "play-button", textContent: "Start" });
  begin.onclick = () => play(parent, glyphs, about, networks, seed);
}
