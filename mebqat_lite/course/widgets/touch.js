// A picture, and an area of it that tells Python where it is touched. The places are shares of the area, 0 to 1 to the
// right and upwards. The widget model holds back all but the latest change while the kernel is busy; arrow keys are
// summed up, so that none is lost.

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const LARGE = 5; // steps of an arrow key with Shift
const PATIENCE = 100; // milliseconds of work before the sign says so

function render({ model, el }) {
  const root = child(el, "div", "mq-touch");
  const image = child(root, "img");
  const area = child(root, "div", "mq-touch-area");
  const sign = child(root, "div", "mq-touch-busy");
  const words = child(root, "div", "mq-touch-words");
  root.style.width = `${model.get("width")}px`;
  root.dataset.lmSuppressShortcuts = "true"; // keys pressed here are not JupyterLab's
  area.setAttribute("role", "application"); // a screen reader passes the arrow keys on
  area.tabIndex = 0;
  sign.setAttribute("role", "status");
  words.setAttribute("aria-live", "polite");
  image.addEventListener("load", () => name(el.closest(".mq-widget")));
  listen(model, area);
  return follow(model, {
    value: () => paint(image, model.get("value")),
    alt: () => (image.alt = words.textContent = model.get("alt")),
    area: () => place(area, model.get("area")),
    label: () => area.setAttribute("aria-label", (area.title = model.get("label"))),
    busy: () => wait(root, sign, model.get("busy")),
  });
}

function follow(model, changes) {
  for (const [trait, show] of Object.entries(changes)) {
    model.on(`change:${trait}`, show);
    show();
  }
  return () => Object.entries(changes).forEach(([trait, show]) => model.off(`change:${trait}`, show));
}

function paint(image, bytes) {
  if (image.src) URL.revokeObjectURL(image.src);
  image.hidden = !bytes?.byteLength;
  if (image.hidden) image.removeAttribute("src");
  else image.src = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}

function place(area, shares) {
  area.hidden = !shares.length;
  ["left", "top", "width", "height"].forEach((side, i) => (area.style[side] = `${100 * (shares[i] ?? 0)}%`));
}

function wait(root, sign, busy) {
  clearTimeout(root.timer);
  const say = (now) => {
    root.setAttribute("aria-busy", String(now));
    sign.textContent = now ? "working …" : "";
  };
  if (busy) root.timer = setTimeout(say, PATIENCE, true);
  else say(false);
}

function listen(model, area) {
  const send = (trait, value) => {
    model.set(trait, value);
    model.save_changes();
  };
  let downs = 0;
  const point = (event) => {
    const box = area.getBoundingClientRect();
    const share = [(event.clientX - box.left) / box.width, (box.bottom - event.clientY) / box.height];
    send("point", [...share.map((part) => Math.min(Math.max(part, 0), 1)), downs]);
  };
  area.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    area.focus();
    area.setPointerCapture(event.pointerId);
    downs += 1;
    point(event);
  });
  for (const kind of ["pointermove", "pointerup"]) {
    area.addEventListener(kind, (event) => area.hasPointerCapture(event.pointerId) && point(event));
  }
  area.addEventListener("keydown", (event) => {
    const arrow = ARROWS[event.key], far = event.shiftKey ? LARGE : 1;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow) send("steps", model.get("steps").map((sum, i) => sum + far * arrow[i]));
    else if (event.key === "Enter" || event.key === " ") send("presses", model.get("presses") + 1);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

// Sliders and rows of buttons show their label beside them, but do not carry it: a screen reader would name none.
function name(widget) {
  const label = (control) => control.querySelector(".widget-label")?.textContent ?? "";
  for (const slider of widget?.querySelectorAll(".widget-slider") ?? []) {
    slider.querySelector(".noUi-handle")?.setAttribute("aria-label", label(slider));
    slider.querySelector(".widget-readout")?.setAttribute("aria-label", label(slider));
  }
  for (const choice of widget?.querySelectorAll(".widget-toggle-buttons") ?? []) {
    choice.setAttribute("role", "group");
    choice.setAttribute("aria-label", label(choice));
    for (const button of choice.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.classList.contains("mod-active")));
    }
  }
}

function child(parent, kind, className = "") {
  return parent.appendChild(Object.assign(document.createElement(kind), { className }));
}

export default { render };
