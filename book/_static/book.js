// One button for all folded code of a page, in the line that folds the first of it.
document.addEventListener("DOMContentLoaded", () => {
  const folded = [...document.querySelectorAll("details.hide")];
  if (!folded.length) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "all-code";
  const show = (open) => {
    for (const each of folded) each.open = open;
    button.textContent = open ? "Fold all code" : "Show all code";
    button.setAttribute("aria-pressed", String(open));
  };
  button.addEventListener("click", () => show(button.getAttribute("aria-pressed") !== "true"));
  show(false);
  folded[0].after(button);
});

// What is folded is printed as well, except code and the set-up.
const unfolded = [];
window.addEventListener("beforeprint", () => {
  for (const each of document.querySelectorAll("details:not(.hide, [open])")) {
    each.open = true;
    unfolded.push(each);
  }
});
window.addEventListener("afterprint", () => {
  for (const each of unfolded.splice(0)) each.open = false;
});

// A figure that is wider than a phone scrolls; a keyboard can scroll it once it can be reached.
const reachWideFigures = () => {
  for (const figure of document.querySelectorAll("article figure")) {
    if (figure.scrollWidth > figure.clientWidth) figure.tabIndex = 0;
    else figure.removeAttribute("tabindex");
  }
};
window.addEventListener("load", reachWideFigures);
window.addEventListener("resize", reachWideFigures);

// A chapter with pages of its own folds; say so to those who do not see the arrow.
document.addEventListener("DOMContentLoaded", () => {
  for (const summary of document.querySelectorAll(".bd-sidenav summary")) {
    const chapter = summary.closest("li").querySelector("a").textContent.trim();
    summary.setAttribute("aria-label", `Pages of ${chapter}`);
  }
});
