// The controls of a guess: native ones, which have names and keys of their own. The question stands above them as text.

const UNKNOWN = "no guess yet";

function render({ model, el }) {
  el.classList.add("mq-guess");
  const show = model.get("options").length ? buttons(model, el) : slider(model, el);
  model.on("change:value", show);
  show();
  return () => model.off("change:value", show);
}

function slider(model, el) {
  const [low, high, step] = model.get("limits");
  const unit = model.get("unit") ? ` ${model.get("unit")}` : "";
  const input = control(el);
  Object.assign(input, { type: "range", min: low, max: high, step, value: (low + high) / 2 });
  input.setAttribute("aria-label", model.get("question"));
  const output = child(el, "output");
  const choose = () => set(model, Number(input.value));
  input.addEventListener("input", choose);
  input.addEventListener("pointerup", choose); // a press where the slider stands already is a guess too
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") choose();
  });
  return () => {
    const value = model.get("value");
    el.classList.toggle("mq-guess-open", value === null);
    if (value !== null) input.value = value;
    output.textContent = value === null ? UNKNOWN : `${value}${unit}`;
    input.setAttribute("aria-valuetext", output.textContent);
  };
}

function buttons(model, el) {
  const group = child(el, "div", "mq-guess-options");
  group.setAttribute("role", "radiogroup");
  group.setAttribute("aria-label", model.get("question"));
  const name = `mq-guess-${Math.random()}`; // a view of its own has a group of its own
  const inputs = model.get("options").map((option) => {
    const label = child(group, "label");
    const input = control(label);
    Object.assign(input, { type: "radio", name, value: option });
    label.append(option);
    input.addEventListener("change", () => set(model, option));
    return input;
  });
  return () => inputs.forEach((input) => (input.checked = input.value === model.get("value")));
}

function set(model, value) {
  model.set("value", value);
  model.save_changes();
}

function control(parent) {
  const input = child(parent, "input");
  input.setAttribute("data-lm-suppress-shortcuts", "true"); // its arrow keys are not JupyterLab's
  return input;
}

function child(parent, tag, className = "") {
  const made = document.createElement(tag);
  made.className = className;
  return parent.appendChild(made);
}

export default { render };
