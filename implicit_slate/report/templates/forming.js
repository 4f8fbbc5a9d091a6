// Two cells side by side, at any training step for which they have a picture.

const forming = document.getElementById("forming");
const pictured = data.cells.filter((cell) => Object.keys(data.pictures[cell.number]).length);

/** The value of a tag at a step, or at the last logged step before it. */
function valueAt(tag, cell, step) {
  const [steps, values] = data.curves[tag]?.[cell.number] ?? [[], []];
  return values[steps.findLastIndex((found) => found <= step)];
}

/** A view of one cell: a menu of cells; `show(step)` shows the cell's picture and measures at that step. */
function viewer(first, label, changed) {
  const select = make("select", { "aria-label": label }, ...pictured.map((cell) => make("option", { value: cell.number }, cell.place)));
  select.value = first.number;
  const image = make("img", { alt: "" });
  const caption = make("figcaption");
  const element = make("figure", {}, select, image, caption);
  const cell = () => data.cells[select.value];
  const steps = () => Object.keys(data.pictures[select.value]).map(Number);
  const show = (step) => {
    const found = steps().findLast((other) => other <= step) ?? steps()[0];
    image.src = `data:image/webp;base64,${data.pictures[select.value][found]}`;
    image.alt = `Validation images, images through the slots and slot masks of ${cell().place} at step ${found}`;
    const numbers = Object.keys(data.curves)
      .filter((tag) => ["val/cross_entropy", "val/mse", "val/loss", "slots/fg_ari"].includes(tag))
      .map((tag) => [data.names[tag], valueAt(tag, cell(), found)])
      .filter(([, value]) => value !== undefined)
      .map(([name, value]) => `${name} ${Number(value.toPrecision(3))}`);
    caption.textContent = [`Step ${found.toLocaleString("en")}`, ...numbers].join(" · ");
  };
  select.onchange = changed;
  return { element, show, steps };
}

if (forming && pictured.length) {
  const one = pictured[0];
  const like = (cell) => cell.method !== one.method && cell.setting === one.setting;
  const other = pictured.find((cell) => like(cell) && cell.seed === one.seed) ?? pictured.find(like) ?? pictured[1];
  const update = () => {
    const steps = [...new Set(viewers.flatMap((each) => each.steps()))].sort((a, b) => a - b);
    slider.max = steps.length - 1;
    if (slider.dataset.last !== "no") slider.value = slider.max;
    const step = steps[slider.value];
    slider.setAttribute("aria-valuetext", `step ${step}`);
    output.textContent = `step ${step.toLocaleString("en")}`;
    line.hidden = steps.length < 2;
    viewers.forEach((each) => each.show(step));
  };
  const slider = make("input", { type: "range", id: "step", min: 0, step: 1 });
  const output = make("output", { htmlFor: "step" });
  const play = make("button", { type: "button" }, "Play");
  const line = make("p", { className: "bar" }, make("label", { htmlFor: "step" }, "Training "), slider, output, " ", play);
  const viewers = [one, other].filter(Boolean).map((cell, i) => viewer(cell, i ? "Second cell" : "First cell", update));
  const go = (place) => {
    slider.value = place;
    slider.dataset.last = "no";
    update();
  };
  slider.oninput = () => go(slider.value);
  let timer;
  play.onclick = () => {
    clearInterval(timer);
    if (Number(slider.value) === Number(slider.max)) go(0);
    timer = setInterval(() => (slider.value === slider.max ? clearInterval(timer) : go(Number(slider.value) + 1)), 700);
  };
  forming.append(line, make("div", { className: "images" }, ...viewers.map((each) => each.element)));
  update();
}
