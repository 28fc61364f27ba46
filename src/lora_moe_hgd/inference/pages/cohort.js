"use strict";
// The index of a cohort: headers sort, and the form hides rows.
const table = document.getElementById("cases"), rows = [...table.tBodies[0].rows];
const headers = [...table.tHead.rows[0].cells], form = document.getElementById("filters");
const [text, kind, column, least, most] = ["text", "kind", "column", "least", "most"].map((id) => document.getElementById(id));

// Cells of numbers carry their value. A cell without one, such as those of failed cases, has none.
function value(row, number) {
  const {value, number: numeric} = row.cells[number].dataset;
  return numeric === undefined ? row.cells[number].textContent : value === "" ? null : Number(value);
}

function sort(number) {
  const header = headers[number], rising = header.getAttribute("aria-sort") !== "ascending";
  for (const other of headers) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const order = (first, second) => {
    const [a, b] = [value(first, number), value(second, number)];
    // Rows without a value come last either way.
    if (a === null || b === null) return (a === null) - (b === null);
    const compared = typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true});
    return rising ? compared : -compared;
  };
  table.tBodies[0].append(...rows.sort(order));
}

function filter() {
  const words = text.value.toLowerCase(), kinds = kind.value.split(" ");
  for (const row of rows) {
    const number = value(row, Number(column.value));
    const above = least.value === "" || (number !== null && number >= Number(least.value));
    const below = most.value === "" || (number !== null && number <= Number(most.value));
    const named = row.textContent.toLowerCase().includes(words);
    row.hidden = !(above && below && named && (kind.value === "" || kinds.includes(row.className)));
  }
  document.getElementById("count").textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length} cases`;
}

headers.forEach((header, number) => {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = header.textContent;
  button.addEventListener("click", () => sort(number));
  header.replaceChildren(button);
});
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.hidden = false;
filter();
