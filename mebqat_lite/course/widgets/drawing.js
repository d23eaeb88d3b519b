// A drawing pad of lesson 06: boxes that hold strokes, [x, y, x, y, ...] each in 0 .. 1, or 28 x 28 pixels of 4 levels.
// Python owns the boxes (fill, undo, clear); here a finished stroke is added to them. Each name has a column of boxes,
// which grows: it shows one empty box after the last that is filled, and one empty column stands after the last filled.

const SIDE = 28;
const PEN = 0.055; // width of a stroke, of the box
const STEP = 1 / 14; // of the pen for an arrow key; with Shift a quarter

function render({ model, el }) {
  const names = model.get("names"), shots = model.get("shots");
  const root = child(el, "div", "mq-pad");
  root.setAttribute("data-lm-suppress-shortcuts", "true"); // keys drawn with are not JupyterLab's
  const grid = child(root, "div", "mq-pad-columns");
  const columns = names.map((name, way) => {
    const element = child(grid, "div", "mq-pad-column");
    child(element, "div", "mq-pad-name").textContent = name;
    const label = (shot) => (shots > 1 ? `${name}, example ${shot + 1} of ${shots}` : name);
    const boxes = [...Array(shots).keys()].map((shot) => new Box(model, element, way * shots + shot, label(shot)));
    return { element, boxes };
  });
  if (model.get("hint")) child(root, "div", "mq-pad-hint").textContent = model.get("hint");
  const redraw = () => {
    const filled = columns.map(({ boxes }) => boxes.findLastIndex((box) => box.isFull));
    const last = filled.findLastIndex((count) => count >= 0);
    columns.forEach(({ element, boxes }, way) => {
      element.hidden = way > last + 1;
      boxes.forEach((box, shot) => {
        box.frame.hidden = shot > filled[way] + 1;
        box.paint();
      });
    });
  };
  model.on("change:boxes", redraw);
  redraw();
  return () => model.off("change:boxes", redraw);
}

class Box {
  constructor(model, parent, index, name) {
    Object.assign(this, { model, index, name, line: null, pen: [0.5, 0.5] });
    const frame = (this.frame = child(parent, "div", "mq-pad-box"));
    this.canvas = child(frame, "canvas", model.get("shots") === 1 ? "mq-pad-large" : "");
    this.canvas.width = this.canvas.height = this.canvas.className ? 300 : 132; // twice the size on the page
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.cross = child(frame, "button", "mq-pad-cross");
    this.cross.textContent = "×";
    this.cross.tabIndex = -1; // by keys: Delete
    this.cross.setAttribute("aria-label", `empty ${name}`);
    this.cross.addEventListener("click", () => this.set({ strokes: [], pixels: "" }));
    this.listen();
  }

  get content() {
    return this.model.get("boxes")[this.index];
  }

  get isFull() {
    return this.content.strokes.length > 0 || this.content.pixels !== "";
  }

  set(content) {
    const boxes = [...this.model.get("boxes")];
    boxes[this.index] = content;
    this.model.set("boxes", boxes);
    this.model.save_changes();
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      canvas.focus();
      canvas.setPointerCapture(event.pointerId);
      this.begin(this.place(event));
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!this.line || !canvas.hasPointerCapture(event.pointerId)) return;
      const all = event.getCoalescedEvents?.() ?? [];
      (all.length ? all : [event]).forEach((one) => this.go(this.place(one)));
    });
    canvas.addEventListener("pointerup", () => this.end());
    canvas.addEventListener("pointercancel", () => this.end());
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.paint());
    canvas.addEventListener("blur", () => { this.end(); this.paint(); });
  }

  place(event) {
    const area = this.canvas.getBoundingClientRect();
    return [limit((event.clientX - area.left) / area.width), limit((event.clientY - area.top) / area.height)];
  }

  begin(at) {
    this.pen = at;
    this.line = [...at];
    this.paint();
  }

  go(at) {
    this.pen = at;
    this.line?.push(...at);
    this.paint();
  }

  end() {
    if (!this.line) return;
    const line = this.line.map((value) => Math.round(1000 * value) / 1000);
    this.line = null;
    this.set({ strokes: [...this.content.strokes, line], pixels: "" }); // the first stroke replaces an example
  }

  key(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (way) {
      const far = event.shiftKey ? STEP / 4 : STEP;
      this.go([limit(this.pen[0] + far * way[0]), limit(this.pen[1] + far * way[1])]);
    } else if (event.key === " " || event.key === "Enter") {
      this.line ? this.end() : this.begin(this.pen);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      this.line = null;
      this.set({ strokes: [], pixels: "" });
    } else if (event.key === "z" && (event.ctrlKey || event.metaKey)) {
      this.line = null;
      this.model.send("undo");
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  paint() {
    const { canvas, content } = this, size = canvas.width, draw = canvas.getContext("2d");
    const strokes = this.line ? [...content.strokes, this.line] : content.strokes;
    const full = strokes.length > 0 || this.isFull;
    draw.fillStyle = "#fff";
    draw.fillRect(0, 0, size, size);
    if (content.pixels && !this.line) pixels(draw, content.pixels, size);
    draw.strokeStyle = draw.fillStyle = "#000";
    draw.lineWidth = PEN * size;
    draw.lineCap = draw.lineJoin = "round";
    for (const line of strokes) path(draw, line, size);
    if (document.activeElement === canvas && !canvas.matches(":active")) this.nib(draw, size);
    this.cross.hidden = !full;
    canvas.setAttribute("aria-label", `${this.name}, ${full ? "drawn" : "empty"}; press Space to set the pen down`);
  }

  nib(draw, size) {
    draw.lineWidth = 2;
    draw.strokeStyle = this.line ? "#D55E00" : "#0072B2";
    draw.beginPath();
    draw.arc(this.pen[0] * size, this.pen[1] * size, 8, 0, 2 * Math.PI);
    draw.stroke();
  }
}

function path(draw, line, size) {
  draw.beginPath();
  draw.moveTo(line[0] * size, line[1] * size);
  if (line.length === 2) draw.lineTo(line[0] * size + 0.01, line[1] * size); // a dot
  for (let i = 2; i < line.length; i += 2) draw.lineTo(line[i] * size, line[i + 1] * size);
  draw.stroke();
}

function pixels(draw, digits, size) {
  const one = size / SIDE;
  for (let i = 0; i < digits.length; i++) {
    const grey = 255 - 85 * Number(digits[i]);
    draw.fillStyle = `rgb(${grey},${grey},${grey})`;
    draw.fillRect((i % SIDE) * one, Math.floor(i / SIDE) * one, one + 0.5, one + 0.5);
  }
}

function limit(share) {
  return Math.min(Math.max(share, 0), 1);
}

function child(parent, kind, className = "") {
  return parent.appendChild(Object.assign(document.createElement(kind), { className }));
}

export default { render };
