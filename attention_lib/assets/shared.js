// What the explorer and the live computations share; stands before either of them in one function.
const make = (tag, name, text = "") => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text; // as text: markup in a token is shown
  return element;
};

const entropy = (weights) => weights.reduce((sum, w) => (w > 0 ? sum - w * Math.log(w) : sum), 0);

// Each component of the page that has not begun; a notebook runs this again for every new one.
const begin = (kind, start) => {
  for (const root of document.querySelectorAll(`.attention-${kind}:not([data-ready])`)) {
    root.dataset.ready = "yes";
    start(root);
  }
};

