// Sorts tables: a click on a header sorts upwards, a second one downwards, a third restores.
(function () {
  "use strict";
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
  const byText = new Intl.Collator("en", { numeric: true });

  function compare(a, b) {
    return typeof a === "number" ? a - b : byText.compare(a, b);
  }

  // What is missing is undefined and stays at the end, whichever way the rest is sorted.
  function keyOf(cell) {
    const value = cell.dataset.value;
    if (value === undefined) {
      const text = cell.textContent.trim();
      return text === "\u2013" ? undefined : text;
    }
    return value === "" ? undefined : Number(value);
  }

  function sort(table, original, column, order) {
    const sign = order === "descending" ? -1 : 1;
    const rows = original.slice();
    if (order !== "none") {
      const keys = new Map(rows.map((row) => [row, keyOf(row.cells[column])]));
      rows.sort(function (a, b) {
        const x = keys.get(a), y = keys.get(b);
        if (x === undefined || y === undefined) {
          return (x === undefined) - (y === undefined);
        }
        return sign * compare(x, y);
      });
    }
    table.tBodies[0].append(...rows);
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    const original = Array.from(table.tBodies[0].rows);
    const headers = Array.from(table.tHead.rows[0].cells);
    headers.forEach(function (header, column) {
      header.querySelector("button").addEventListener("click", function () {
        const order = NEXT[header.getAttribute("aria-sort")];
        headers.forEach((other) => other.setAttribute("aria-sort", "none"));
        header.setAttribute("aria-sort", order);
        sort(table, original, column, order);
      });
    });
  }
})();
