// The page's controls: theme, links to sections, sorting and filtering of tables. The content works without them.

const data = JSON.parse(document.getElementById("data").textContent);

/** A new element with properties, attributes (`aria-label`, …) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key in element) element[key] = value;
    else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

// Theme: the system's until the reader uses the button; the choice is stored.
const systemDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
const themed = []; // functions to call after the theme changes

function changeTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  document.getElementById("theme").textContent = isDark() ? "Light" : "Dark";
  document.getElementById("theme").setAttribute("aria-label", `Show the page ${isDark() ? "light" : "dark"}`);
  themed.forEach((act) => act());
}

document.getElementById("theme").onclick = () => {
  changeTheme(isDark() ? "light" : "dark");
  try {
    localStorage.setItem("theme", document.documentElement.dataset.theme);
  } catch {} // some browsers store nothing for local files
};
systemDark.addEventListener("change", () => changeTheme());
let kept = null;
try {
  kept = localStorage.getItem("theme");
} catch {}
changeTheme(kept);

// Links to the sections.
document.querySelectorAll("main h2").forEach((heading, i) => {
  heading.id = `section-${i}`;
  const name = heading.textContent.split(",")[0];
  document.querySelector("nav").append(make("a", { href: `#section-${i}` }, name));
});

/** The number at the start of a table cell, such as `1,550 ×÷ 2.1` or `1.84·10⁶`; NaN if there is none. */
function leadingNumber(text) {
  const found = /^×?(-?[\d,.]+)(?:·10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+))?/.exec(text);
  if (!found) return NaN;
  const power = [...(found[2] ?? "⁰")].map((digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(digit)).map((n) => (n < 0 ? "-" : n)).join("");
  return Number(found[1].replaceAll(",", "")) * 10 ** Number(power);
}

/** Sort a table's rows by a column; in a column of numbers, cells without a number come last. */
function sortRows(table, column, descending) {
  const rows = [...table.tBodies[0].rows];
  const text = (row) => row.cells[column].textContent.trim();
  const words = rows.map(text).filter((found) => found !== "–");
  const numeric = words.every((found) => !Number.isNaN(leadingNumber(found)));
  const sign = descending ? -1 : 1;
  const missing = (row) => (numeric ? Number.isNaN(leadingNumber(text(row))) : text(row) === "–");
  rows.sort((a, b) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    if (numeric) return sign * (leadingNumber(text(a)) - leadingNumber(text(b)));
    return sign * text(a).localeCompare(text(b), undefined, { numeric: true });
  });
  table.tBodies[0].append(...rows);
}

/** Add buttons to a table's header that sort it and, above a long table, a field that filters its rows. */
function enhance(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button" }, ...head.childNodes);
    button.onclick = () => {
      const descending = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortRows(table, column, descending);
    };
    head.append(button);
  });
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 10) return;
  const count = make("output", {}, `${rows.length} rows`);
  const field = make("input", { type: "search", placeholder: "words in a row", "aria-label": "Filter rows" });
  field.oninput = () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
    count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows`;
  };
  table.before(make("p", { className: "filter" }, make("label", {}, "Filter rows ", field), " ", count));
}

document.querySelectorAll("main table").forEach(enhance);
