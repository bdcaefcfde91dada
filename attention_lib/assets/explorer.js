// The attention explorer: reads the data beside it, draws buttons, never runs what a token says.
const UNIT = 60000, BLOCKED = 65535; // weights are whole numbers of 1/60000; the last means "masked"

const start = (root) => {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const bytes = Uint8Array.from(atob(data.weights), (c) => c.charCodeAt(0));
  const all = new DataView(bytes.buffer);
  const [layers, heads, rows, columns] = data.shape;
  const now = { layer: data.start[0], head: data.start[1], query: data.start[2] };
  const mean = heads; // the last "head" is the mean of all
  const grid = data.grid; // patches: the last rows * columns keys

  const one = (layer, head, query, key) =>
    all.getUint16(2 * (((layer * heads + head) * rows + query) * columns + key), true);
  const row = (layer, head, query) =>
    Array.from({ length: columns }, (_, key) => {
      if (head < mean) return one(layer, head, query, key);
      let sum = 0;
      for (let h = 0; h < heads; h++) sum += one(layer, h, query, key) % BLOCKED;
      return one(layer, 0, query, key) === BLOCKED ? BLOCKED : sum / heads;
    }).map((number) => (number === BLOCKED ? null : number / UNIT));
  const spread = (layer, head) => {
    let sum = 0;
    for (let query = 0; query < rows; query++) sum += entropy(row(layer, head, query));
    return sum / rows;
  };

  // --- one group of buttons, of which one is chosen: arrow keys move, hover and focus choose ---

  const group = (label, texts, choose) => {
    const box = make("div", "ae-group");
    box.setAttribute("role", "radiogroup");
    box.setAttribute("aria-label", label);
    const buttons = texts.map((text, index) => {
      const button = make("button", "ae-token", text);
      button.type = "button";
      button.setAttribute("role", "radio");
      button.addEventListener("focus", () => choose(index));
      button.addEventListener("click", () => choose(index));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        const last = buttons.length - 1;
        const to = event.key === "Home" ? 0 : event.key === "End" ? last : index + (step ?? NaN);
        if (buttons[to]) {
          event.preventDefault();
          buttons[to].focus();
        }
      });
      box.append(button);
      return button;
    });
    const mark = (chosen) =>
      buttons.forEach((button, index) => {
        button.setAttribute("aria-checked", String(index === chosen));
        button.tabIndex = index === chosen ? 0 : -1;
      });
    return { box, buttons, mark };
  };

  const go = (name) => (index) => {
    if (now[name] === index) return;
    now[name] = index;
    show();
  };

  const section = (title, ...content) => {
    const part = make("div", "ae-part");
    part.append(make("div", "ae-title", title), ...content);
    return part;
  };

  // --- layers and heads ---

  const layer = group("layer", data.layers, go("layer"));
  const kind = data.kind ?? "head"; // what stands side by side; a mean makes sense of heads only
  const headNames = heads > 1 && kind === "head" ? [...data.heads, "mean"] : data.heads;
  const head = group(kind, headNames, go("head"));
  head.buttons.forEach((button) => {
    const bar = make("span", "ae-bar");
    bar.setAttribute("aria-hidden", "true");
    button.append(bar, make("small", "ae-number"));
  });
  const choices = make("div", "ae-choices");
  if (layers > 1) choices.append(section("layer", layer.box));
  if (heads > 1) choices.append(section(`${kind}, and the mean entropy of its rows in nats`, head.box));

  // --- queries and keys; patches of an image lie on the image ---

  const query = group("query", data.queries, go("query"));
  query.buttons.forEach((button, index) => button.addEventListener("mouseenter", () => go("query")(index)));
  const words = grid ? columns - grid[0] * grid[1] : columns;
  const list = make("ol", "ae-keys");
  const places = data.keys.map((text, index) => {
    const item = make(index < words ? "li" : "span", "ae-token ae-key");
    item.append(make("span", "", text), make("small", "ae-number"));
    if (index < words) list.append(item);
    return item;
  });
  const parts = [];
  if (grid) {
    const picture = make("div", "ae-image");
    picture.style.backgroundImage = `url(${data.image})`;
    picture.style.gridTemplateColumns = `repeat(${grid[1]}, 1fr)`;
    picture.style.aspectRatio = `${grid[1]} / ${grid[0]}`;
    const self = data.self;
    const patches = query.buttons.slice(words);
    places.slice(words).forEach((place, index) => {
      // In self-attention a patch is a query too: its button lies on the image.
      if (self) {
        place.replaceChildren(patches[index]);
        patches[index].setAttribute("aria-label", data.keys[words + index]);
        patches[index].textContent = "";
      } else place.replaceChildren();
      place.className = "ae-patch";
      picture.append(place);
    });
    if (self) {
      // The image belongs to the group of queries: one set of arrow keys for all.
      query.box.append(picture);
    } else parts.push(section("keys: patches of the image", picture));
  }
  const queries = section("query: tap or point at one; arrow keys work too", query.box);
  const keys = section("keys, and their weights", list);
  const said = make("p", "ae-said");
  said.setAttribute("role", "status");
  said.setAttribute("aria-live", "polite");
  const body = make("div", "ae-body");
  body.append(choices, queries, said, ...(words ? [keys] : []), ...parts);

  // --- what is shown now ---

  const entropies = Array.from({ length: layers }, () => null);
  const show = () => {
    const weights = row(now.layer, now.head, now.query);
    const top = Math.max(...weights.filter((w) => w !== null), 1e-9);
    places.forEach((place, index) => {
      const weight = weights[index];
      place.classList.toggle("ae-masked", weight === null);
      if (index < words) {
        place.style.backgroundColor = `rgb(43 140 190 / ${0.6 * (weight ?? 0)})`;
        place.lastChild.textContent = weight === null ? "–" : weight.toFixed(2);
      } else place.style.backgroundColor = `rgb(0 0 0 / ${0.8 * (1 - (weight ?? 0) / top)})`;
    });
    layer.mark(now.layer);
    head.mark(now.head);
    query.mark(now.query);
    entropies[now.layer] ??= headNames.map((_, index) => spread(now.layer, index));
    head.buttons.forEach((button, index) => {
      const value = entropies[now.layer][index];
      button.lastChild.textContent = value.toFixed(2);
      button.lastChild.previousSibling.style.width = `${(100 * value) / Math.log(Math.max(columns, 2))}%`;
    });
    const best = weights
      .map((weight, index) => [weight ?? 0, index])
      .sort((a, b) => b[0] - a[0])
      .slice(0, 3)
      .filter(([weight]) => weight > 0)
      .map(([weight, index]) => `${data.keys[index]} ${weight.toFixed(2)}`);
    const blocked = weights.filter((w) => w === null).length;
    const where = [layers > 1 && `layer ${data.layers[now.layer]}`, heads > 1 && `${kind} ${headNames[now.head]}`];
    said.textContent =
      [...where.filter(Boolean), `query ${data.queries[now.query]}`].join(", ") +
      `: ${best.join(", ") || "no key allowed"}. ` +
      `Entropy ${entropy(weights).toFixed(2)} of at most ${Math.log(columns - blocked || 1).toFixed(2)} nats.` +
      (blocked ? ` ${blocked} masked.` : "");
  };

  show();
  root.querySelector(".still")?.remove();
  root.append(body);
};

begin("explorer", start);
