"use strict";
// Sorting: a button in every head of a table, by number where cells have one.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  const value = (row, at) => {
    const cell = row.cells[at];
    return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
  };
  heads.forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const numeric = body.rows.length && typeof value(body.rows[0], at) === "number";
      const was = head.getAttribute("aria-sort");
      const down = was ? was === "ascending" : numeric && !heads[at].textContent.includes("taken");
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const rows = [...body.rows].sort((a, b) => {
        const x = value(a, at), y = value(b, at);
        return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
      });
      body.append(...rows);
    });
  });
}
// Hovering on the map: the image beside its point.
const figure = document.querySelector("figure.map[data-there]");
if (figure) {
  const there = JSON.parse(figure.dataset.there);
  const columns = Number(figure.dataset.columns), side = Number(figure.dataset.side);
  const tip = document.getElementById("tip"), thumb = document.getElementById("thumb");
  const caption = document.getElementById("caption");
  const titles = new Map();
  for (const point of figure.querySelectorAll("circle[data-at]")) {
    // The browser's own title would cover the picture.
    const title = point.querySelector("title");
    titles.set(point, title.textContent);
    title.remove();
    point.setAttribute("aria-label", title.textContent);
  }
  const show = (event) => {
    const point = event.target.closest("circle[data-at]");
    tip.hidden = !point;
    if (!point) return;
    const at = Number(point.dataset.at);
    thumb.hidden = !there[at];
    thumb.style.backgroundPosition = `-${(at % columns) * side}px -${Math.floor(at / columns) * side}px`;
    caption.textContent = titles.get(point);
    const box = figure.getBoundingClientRect(), spot = point.getBoundingClientRect();
    const x = spot.right - box.left + 8, y = spot.top - box.top + 8;
    tip.style.left = `${x + 158 > box.width ? Math.max(0, spot.left - box.left - 158) : x}px`;
    tip.style.top = `${Math.max(0, y)}px`;
  };
  figure.addEventListener("pointerover", show);
  figure.addEventListener("click", show);
  figure.addEventListener("pointerleave", () => { tip.hidden = true; });
}
