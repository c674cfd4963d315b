// Makes tables sortable by a click on a column heading. Without it they are complete, in order.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const value = (row, place) => row.cells[place].dataset.value ?? row.cells[place].textContent.trim();
  const order = (a, b) => {
    const numbers = [a, b].map(Number);
    return numbers.some(Number.isNaN) ? a.localeCompare(b, undefined, {numeric: true}) : numbers[0] - numbers[1];
  };
  heads.forEach((head, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows];
      const empty = rows.filter(row => value(row, place) === "");
      const there = rows.filter(row => value(row, place) !== "");
      there.sort((a, b) => (down ? -1 : 1) * order(value(a, place), value(b, place)));
      body.append(...there, ...empty);
    });
  });
}
