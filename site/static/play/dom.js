// Small helps for making a page.

// A new element at the end of `parent`, with properties, and attributes of ARIA: child(box, "p", { textContent: "hi" }).
export function child(parent, kind, properties = {}, labels = {}) {
  const element = Object.assign(document.createElement(kind), properties);
  for (const [name, value] of Object.entries(labels)) element.setAttribute(name, value);
  parent.append(element);
  return element;
}

// A slider over `stops`, [{ words, ... }]; `act` is called with the stop that is chosen. It returns the
// `input`, and `set`, which moves it to a stop by number.
export function slider(parent, name, stops, start, act) {
  const label = child(parent, "label", { className: "play-slider" });
  child(label, "span", { textContent: name });
  const range = { type: "range", min: 0, max: stops.length - 1, step: 1, value: start };
  const input = child(label, "input", range, { "aria-label": name });
  const words = child(label, "output");
  const show = () => {
    const stop = stops[Number(input.value)];
    words.textContent = stop.words;
    input.setAttribute("aria-valuetext", stop.words);
    return stop;
  };
  input.addEventListener("input", () => act(show()));
  show();
  return { input, set: (number) => { input.value = number; show(); } };
}

// Numbers in [0, 1) that depend on `seed` alone (mulberry32).
export function random(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// The numbers 0 to `count` - 1 in a random order.
export function shuffled(count, draw) {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(draw() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
