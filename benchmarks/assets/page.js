"use strict";
// Sorts tables by the column whose head is chosen: figures by size, words by letters, empty cells last.
(() => {
  const value = (row, column) => row.cells[column].textContent.trim();
  const figure = (text) => {
    const found = /^[-+]?[\d,]*\.?\d+(e[-+]?\d+)?/i.exec(text);
    return found ? Number(found[0].replace(/,/g, "")) : NaN;
  };

  function compare(a, b) {
    if (!a || !b) return a ? -1 : b ? 1 : 0;
    const [x, y] = [figure(a), figure(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  }

  function sort(head) {
    const column = head.cellIndex;
    const falling = head.getAttribute("aria-sort") === "ascending";
    const body = head.closest("table").tBodies[0];
    const rows = [...body.rows].sort((one, other) => {
      const [a, b] = [value(one, column), value(other, column)];
      return a && b && falling ? compare(b, a) : compare(a, b);
    });
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    body.append(...rows);
  }

  for (const head of document.querySelectorAll("th")) {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head));
    head.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(head); }
    });
  }
  document.body.dataset.ready = "true";
})();
