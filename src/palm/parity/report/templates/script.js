"use strict";
const tip = document.getElementById("tip");

// The browser's own titles come late and would show a second time.
for (const mark of document.querySelectorAll(".hit")) {
  const title = mark.querySelector("title");
  mark.dataset.tip = title ? title.textContent : mark.title;
  if (title) title.remove();
  mark.removeAttribute("title");
}

function showTip(event) {
  const mark = event.target.closest && event.target.closest(".hit");
  tip.hidden = !mark;
  if (!mark) return;
  tip.textContent = mark.dataset.tip;
  const room = document.documentElement;
  const right = event.clientX + 16;
  const fits = right + tip.offsetWidth < room.clientWidth;
  const left = fits ? right : event.clientX - 16 - tip.offsetWidth;
  tip.style.left = Math.max(8, Math.min(left, room.clientWidth - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(8, Math.min(event.clientY + 16, room.clientHeight - tip.offsetHeight - 8)) + "px";
}

for (const kind of ["pointerover", "pointermove"]) document.addEventListener(kind, showTip);
document.addEventListener("scroll", () => { tip.hidden = true; }, true);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });
// A finger leaves as soon as it is lifted; what it pointed at should stay.
document.documentElement.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") tip.hidden = true; });

// A cell of numbers holds all digits in its title, or its place in data-sort; nan comes last in either order.
function compareCells(a, b, sign) {
  if (!a.title && !a.dataset.sort) return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
  const [x, y] = [a, b].map((cell) => cell.dataset.sort || cell.title).map((all) => all === "inf" ? Infinity : Number(all));
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
  return x === y ? 0 : sign * (x < y ? -1 : 1);
}

function sortBy(head) {
  const table = head.closest("table");
  const other = head.dataset.first === "ascending" ? "descending" : "ascending";
  const order = head.getAttribute("aria-sort") === head.dataset.first ? other : head.dataset.first;
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", order);
  const sign = order === "ascending" ? 1 : -1;
  const rows = Array.from(table.tBodies[0].rows);
  rows.sort((a, b) => compareCells(a.cells[head.cellIndex], b.cells[head.cellIndex], sign));
  table.tBodies[0].append(...rows);
}

// What is folded up on the screen shall be on paper.
const folded = Array.from(document.querySelectorAll("details"));
addEventListener("beforeprint", () => { for (const one of folded) { one.dataset.was = one.open ? "open" : ""; one.open = true; } });
addEventListener("afterprint", () => { for (const one of folded) one.open = Boolean(one.dataset.was); });

for (const button of document.querySelectorAll(".sortable button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}
