// Weights of a layer at some bits, as squares, and the arithmetic of the one that the pointer or the frame is on.

import { child } from "./dom.js";
import { FULL } from "./networks.js";

const ACROSS = 8, CELL = 14, GAP = 6; // kernels in a row; pixels of a weight and between two kernels

// The integer of a weight and what the layer multiplies with: (code - zero) step.
export function quantized(weight, bits, [step, zero]) {
  const steps = Math.min(Math.max(Math.round(weight / step), -zero), 2 ** bits - 1 - zero);
  return { code: steps + zero, steps, value: steps * step };
}

// Equal in words: "0.031 is 1.4 steps of 0.022, rounded to 1: code 3, in bits 11. The layer multiplies with 0.022."
export function spoken(weight, bits, grid) {
  if (bits === FULL) return `The weight is ${weight.toFixed(4)}, and the layer multiplies with it as it is.`;
  const { code, steps, value } = quantized(weight, bits, grid), exact = weight / grid[0];
  const act = Math.round(exact) === steps ? "rounded to" : "clipped to";
  return `The weight ${weight.toFixed(4)} is ${exact.toFixed(2)} steps of ${grid[0].toFixed(4)}, ${act} ${steps}: ` +
    `code ${code} (codes begin at 0), in bits ${code.toString(2).padStart(bits, "0")}. ` +
    `The layer multiplies with ${value.toFixed(4)}.`;
}

export function kernels(parent, { weights, grids }) {
  const width = ACROSS * (3 * CELL + GAP), height = (weights.length / ACROSS) * (3 * CELL + GAP);
  const most = Math.max(...weights.flat().map(Math.abs));
  child(parent, "p", { textContent: `Weights of MEBQAT-PN in turn at these bits, ${weights.length} kernels of its last ` +
    "quantized layer: blue is positive, orange is negative, and the paler the smaller. Point at one, or move the frame " +
    "with the arrow keys. How many different values are left?" });
  const canvas = child(parent, "canvas", { width, height, className: "play-kernels", tabIndex: 0 }, { role: "img" });
  const words = child(parent, "p", { className: "play-arithmetic" }, { "aria-live": "polite" });
  const draw = canvas.getContext("2d"), at = { column: 1, row: 1 };
  let bits = FULL;
  const corner = (i) => Math.floor(i / 3) * (3 * CELL + GAP) + (i % 3) * CELL;
  const weight = (column, row) =>
    weights[Math.floor(row / 3) * ACROSS + Math.floor(column / 3)][3 * (row % 3) + (column % 3)];
  const rows = (3 * weights.length) / ACROSS;

  const show = () => {
    draw.clearRect(0, 0, width, height);
    for (let row = 0; row < rows; row++) {
      for (let column = 0; column < 3 * ACROSS; column++) {
        const w = weight(column, row), value = bits === FULL ? w : quantized(w, bits, grids[bits]).value;
        draw.fillStyle = tint(value / most);
        draw.fillRect(corner(column), corner(row), CELL - 1, CELL - 1);
      }
    }
    draw.lineWidth = 3;
    draw.strokeStyle = "#B27300";
    draw.strokeRect(corner(at.column) - 1, corner(at.row) - 1, CELL + 1, CELL + 1);
    words.textContent = spoken(weight(at.column, at.row), bits, grids[bits]);
    canvas.setAttribute("aria-label", `weights of a layer. ${words.textContent}`);
  };
  const move = (column, row) => {
    at.column = Math.min(Math.max(column, 0), 3 * ACROSS - 1);
    at.row = Math.min(Math.max(row, 0), rows - 1);
    show();
  };
  const point = (event) => {
    const area = canvas.getBoundingClientRect();
    const index = (share, size) => {
      const pixel = share * size, kernel = Math.floor(pixel / (3 * CELL + GAP));
      return 3 * kernel + Math.min(2, Math.floor((pixel % (3 * CELL + GAP)) / CELL));
    };
    move(index((event.clientX - area.left) / area.width, width), index((event.clientY - area.top) / area.height, height));
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  canvas.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!way) return;
    event.preventDefault();
    move(at.column + way[0], at.row + way[1]);
  });
  return { show: (now) => { bits = now; show(); } };
}

// Blue for positive, red for negative, white for zero; `share` is from -1 to 1.
function tint(share) {
  const [r, g, b] = share < 0 ? [213, 94, 0] : [0, 114, 178], much = Math.min(Math.abs(share), 1);
  return `rgb(${[r, g, b].map((part) => Math.round(255 + (part - 255) * much)).join()})`;
}
