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

// Formulas in view are set at once, all others when the reader first moves, or after a while, a few at
// a time: a long page shows its text and answers to a touch from the beginning. Until then a formula
// stands there as TeX.
const PATIENCE = 4000; // milliseconds until a page that nobody touches sets its formulas
const waiting = new Set();
let loading;
let queue = Promise.resolve();

function loadMathJax() {
  loading ??= new Promise((ready) => {
    window.MathJax.startup = { pageReady: async () => ready() };
    const script = document.createElement("script");
    script.src = document.getElementById("mathjax").dataset.src;
    document.head.append(script);
  });
  return loading;
}

function setFormulas(formulas) {
  const now = formulas.filter((formula) => waiting.delete(formula));
  if (now.length) queue = queue.then(loadMathJax).then(() => MathJax.typesetPromise(now));
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

document.addEventListener("DOMContentLoaded", () => {
  if (document.getElementById("mathjax")) {
    for (const formula of document.querySelectorAll(".math")) waiting.add(formula);
  }
  const watcher = new IntersectionObserver((entries) => {
    const seen = entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target);
    for (const formula of seen) watcher.unobserve(formula);
    setFormulas(seen);
  });
  for (const formula of waiting) watcher.observe(formula);
  for (const move of ["scroll", "keydown", "pointerdown"]) {
    addEventListener(move, setAllFormulas, { once: true, passive: true });
  }
  addEventListener("beforeprint", setAllFormulas);
  setTimeout(setAllFormulas, PATIENCE);

  addEventListener("resize", letKeyboardScroll);
  for (const folded of document.querySelectorAll("details")) {
    folded.addEventListener("toggle", letKeyboardScroll);
  }
});
