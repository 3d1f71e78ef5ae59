"use strict";
// sorting and enlarging the gallery, copying the reproducibility block, and printing what is folded away
const by = id => document.getElementById(id);
const FIRST = 24; // rows of the gallery before "Show all"

function startGallery(list) {
  const dialog = by("large");
  let rows = [...list.children], whole = rows.length <= FIRST, at = 0;

  function fold() {
    rows.forEach((row, i) => row.classList.toggle("folded", !whole && i >= FIRST));
    by("all").hidden = whole;
  }
  function showAll() { whole = true; fold(); }
  function sortBy(key) {
    rows.sort((a, b) => a.dataset[key] - b.dataset[key]);
    list.append(...rows);
    fold();
    by("sorted").textContent = "sorted by " + by("sort").selectedOptions[0].text;
  }
  function show(i) {
    at = (i + rows.length) % rows.length;
    const row = rows[at], facts = row.querySelector(".facts").cloneNode(true);
    by("large-title").textContent = row.querySelector("b").textContent + ", " + row.querySelector("p.soft").innerText.replace("\n", ", ");
    by("large-place").textContent = (at + 1) + " of " + rows.length;
    by("large-body").replaceChildren(row.querySelector(".pictures").cloneNode(true), facts);
    if (!dialog.open) dialog.showModal();
  }

  document.querySelectorAll(".tools, #pairs button").forEach(one => { one.hidden = false; });
  list.addEventListener("click", event => {
    if (event.target.matches("button, img")) show(rows.indexOf(event.target.closest("li")));
  });
  dialog.addEventListener("keydown", event => {
    if (event.key === "ArrowRight" || event.key === "ArrowDown") show(at + 1);
    else if (event.key === "ArrowLeft" || event.key === "ArrowUp") show(at - 1);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => {
    if (rows[at].classList.contains("folded")) showAll();
    rows[at].querySelector("button").focus();
  });
  by("previous").onclick = () => show(at - 1);
  by("next").onclick = () => show(at + 1);
  by("close").onclick = () => dialog.close();
  by("all").onclick = () => { showAll(); rows[FIRST].querySelector("button").focus(); };
  if (by("sort")) by("sort").onchange = event => sortBy(event.target.value);
  fold();
}

function startCopy(button) {
  button.onclick = async () => {
    getSelection().selectAllChildren(by("remake")); // what stays where the clipboard is refused
    try {
      await navigator.clipboard.writeText(by("remake").textContent);
      by("copied").textContent = "copied";
    } catch (error) {
      by("copied").textContent = "selected: copy it with the keyboard";
    }
  };
}

if (by("pairs")) startGallery(by("pairs"));
if (by("copy")) startCopy(by("copy"));
addEventListener("beforeprint", () => {
  if (by("large") && by("large").open) by("large").close();
  document.querySelectorAll("details").forEach(one => { one.open = true; });
});
