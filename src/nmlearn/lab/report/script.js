// Tooltips that also work by touch, and details that open for printing. The page is complete without this script.
(() => {
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  for (const title of document.querySelectorAll("svg title")) {
    const owner = title.parentElement;
    if (owner.matches("svg[role]")) {
      owner.setAttribute("aria-label", title.textContent);
    } else {
      owner.dataset.tip = title.textContent;
    }
    title.remove(); // otherwise the browser shows its own, late and for the whole drawing
  }
  const show = (event) => {
    const mark = event.target.closest?.("[data-tip]");
    tip.hidden = !mark;
    if (!mark) return;
    const row = mark.parentElement.closest("[data-tip]"); // a cell of the heat map is in a named row
    tip.textContent = row ? `${row.dataset.tip}\n${mark.dataset.tip}` : mark.dataset.tip;
    const { clientWidth: width, clientHeight: height } = document.documentElement;
    const left = Math.min(event.clientX + 12, width - tip.offsetWidth - 6);
    const above = event.clientY - tip.offsetHeight - 12;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${above > 6 ? above : Math.min(event.clientY + 16, height - tip.offsetHeight - 6)}px`;
  };
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", () => { tip.hidden = true; }, true);
  addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details")) details.open = true;
  });
})();
