// What a reader has done, kept in this browser and nowhere else.
(() => {
  const STORE = "attention-book-progress";

  function stored() {
    try {
      return JSON.parse(localStorage.getItem(STORE)) ?? {};
    } catch {
      return {}; // no storage: the boxes work until the page is left
    }
  }

  function store(progress) {
    try {
      localStorage.setItem(STORE, JSON.stringify(progress));
    } catch {
      // nothing can be kept
    }
  }

  function element(tag, content, properties = {}) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...content);
    return made;
  }

  // One box for each exercise, in the line that names its level, and for each question, at the end of
  // its answer; after the questions the sum.
  function keepProgress() {
    const page = location.pathname.split("/").pop().replace(/\.html$/, "");
    const tasks = [...document.querySelectorAll(".exercise")].map((exercise) => ({
      name: exercise.id,
      kind: "exercise",
      words: " done",
      place: exercise.querySelector(".exercise-content em")?.parentElement ?? exercise,
    }));
    document.querySelectorAll("#questions details").forEach((answer, number) => {
      tasks.push({
        name: `question-${number + 1}`,
        kind: "question",
        words: " my answer was right",
        place: answer.appendChild(document.createElement("p")),
      });
    });
    const section = document.getElementById("questions") ?? document.getElementById("exercises");
    if (!section || !tasks.length) return;

    const sum = element("span", []);
    const again = element("button", ["Clear this page"], { type: "button" });
    section.append(element("p", [sum, " ", again], { className: "book-progress", role: "status" }));
    for (const task of tasks) {
      task.box = element("input", [], { type: "checkbox", onchange: save });
      task.place.append(element("label", [task.box, task.words], { className: "done" }));
    }
    again.onclick = () => {
      for (const task of tasks) task.box.checked = false;
      save();
    };

    function save() {
      const done = tasks.filter((task) => task.box.checked).map((task) => task.name);
      const { [page]: _, ...others } = stored();
      store(done.length ? { ...others, [page]: { done, of: tasks.length } } : others);
      show();
    }

    function show() {
      const parts = ["exercise", "question"].flatMap((kind) => {
        const all = tasks.filter((task) => task.kind === kind);
        const done = all.filter((task) => task.box.checked).length;
        return all.length ? [`${done} of ${all.length} ${kind}s`] : [];
      });
      sum.textContent = `Kept in this browser: ${parts.join(", ")} done.`;
      again.hidden = !tasks.some((task) => task.box.checked);
    }

    const before = stored()[page]?.done ?? [];
    for (const task of tasks) task.box.checked = before.includes(task.name);
    show();
  }

  // On the title page: how far each chapter is.
  function showProgress() {
    const progress = stored();
    for (const link of document.querySelectorAll(".bd-article table a")) {
      const found = progress[link.pathname.split("/").pop().replace(/\.html$/, "")];
      if (!found) continue;
      const text = ` ${found.done.length} of ${found.of} done`;
      link.after(element("small", [text], { className: "book-progress" }));
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    keepProgress();
    if (document.getElementById("fig-map")) showProgress();
  });
})();
