// A box that scrolls must be reachable with the keyboard; which boxes scroll depends on the width.
const SCROLLING = "mjx-container[display='true'], pre, .table-scroll, .cell_output .output";

function letKeyboardScroll() {
  for (const box of document.querySelectorAll(SCROLLING)) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  letKeyboardScroll();
  window.addEventListener("resize", letKeyboardScroll);
  for (const folded of document.querySelectorAll("details")) {
    folded.addEventListener("toggle", letKeyboardScroll);
  }
});
