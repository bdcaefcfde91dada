// A box that scrolls must be reachable with the keyboard; which boxes scroll depends on the width.
const SCROLLING = "mjx-container[display='true'], pre, .table-scroll, .cell_output .output";

function letKeyboardScroll() {
  // Measured first and changed after: in turns, each change would cost a new layout.
  const boxes = [...document.querySelectorAll(SCROLLING)];
  const scrolls = boxes.map((box) => box.scrollWidth > box.clientWidth);
  boxes.forEach((box, index) => {
    if (scrolls[index]) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
}

// Formulas that come into view are set at once, all others later, a few at a time: a long page answers
// to a touch from the beginning. Until then a formula stands there as TeX.
const SCREENS_AHEAD = "100%"; // how far below the window a formula counts as coming into view
const PATIENCE = 8000; // milliseconds until a page that nobody touches sets the rest
const waiting = new Set();
let queue = Promise.resolve();

function setFormulas(formulas) {
  const now = formulas.filter((formula) => waiting.delete(formula));
  if (now.length) queue = queue.then(() => MathJax.typesetPromise(now));
  return queue;
}

async function setAllFormulas() {
  while (waiting.size) {
    await setFormulas([...waiting].slice(0, 10));
    await new Promise((resume) => setTimeout(resume));
  }
  await queue;
  letKeyboardScroll();
}

function setFormulasInView() {
  for (const formula of document.querySelectorAll(".math")) waiting.add(formula);
  return new Promise((ready) => {
    const watcher = new IntersectionObserver(
      async (entries) => {
        const seen = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
        for (const formula of seen) watcher.unobserve(formula);
        await setFormulas(seen);
        ready();
      },
      { rootMargin: `0px 0px ${SCREENS_AHEAD} 0px` },
    );
    for (const formula of waiting) watcher.observe(formula);
    if (!waiting.size) ready();
    for (const touch of ["scroll", "keydown", "pointerdown"]) {
      addEventListener(touch, setAllFormulas, { once: true, passive: true });
    }
    addEventListener("beforeprint", setAllFormulas);
    setTimeout(setAllFormulas, PATIENCE);
  });
}
if (window.MathJax?.config) MathJax.config.startup.pageReady = setFormulasInView;

window.addEventListener("load", async () => {
  await window.MathJax?.startup?.promise;
  letKeyboardScroll();
  window.addEventListener("resize", letKeyboardScroll);
  for (const folded of document.querySelectorAll("details")) {
    folded.addEventListener("toggle", letKeyboardScroll);
  }
});
