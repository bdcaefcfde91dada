// Small computations with sliders, in the page itself. The numbers equal the library's; a test compares.
const softmax = (scores, temperature = 1) => {
  const top = Math.max(...scores);
  const powers = scores.map((score) => Math.exp((score - top) / temperature));
  const total = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / total);
};
const dot = (a, b, width) => a.slice(0, width).reduce((sum, x, i) => sum + x * b[i], 0);
const turned = ([x, y], angle) => [
  x * Math.cos(angle) - y * Math.sin(angle),
  x * Math.sin(angle) + y * Math.cos(angle),
];

// Each: from data and the sliders' values to rows of bars and a sentence.
const KINDS = {
  temperature: (data, { temperature }) => {
    const weights = softmax(data.scores, temperature);
    const most = Math.log(weights.length);
    return {
      rows: [{ title: "weights", labels: data.labels, values: weights }],
      said: `entropy ${entropy(weights).toFixed(3)} of at most ${most.toFixed(3)} nats`,
    };
  },
  width: (data, { width }) => {
    const scores = data.keys.map((key) => dot(data.query, key, width));
    const plain = softmax(scores), scaled = softmax(scores, Math.sqrt(width));
    const size = Math.sqrt(scores.reduce((sum, s) => sum + s * s, 0) / scores.length);
    return {
      rows: [
        { title: "weights from q · k", labels: data.labels, values: plain },
        { title: "weights from q · k / √D", labels: data.labels, values: scaled },
      ],
      said:
        `root mean square of these scores ${size.toFixed(2)}, √D = ${Math.sqrt(width).toFixed(2)}; ` +
        `largest weight ${Math.max(...plain).toFixed(3)}, scaled ${Math.max(...scaled).toFixed(3)}`,
    };
  },
  rotary: (data, { query, key }) => {
    const parts = data.angles.map((angle, i) => {
      const q = turned(data.query[i], query * angle), k = turned(data.key[i], key * angle);
      return q[0] * k[0] + q[1] * k[1];
    });
    const score = parts.reduce((a, b) => a + b);
    return {
      rows: [{ title: "what each pair of coordinates adds", labels: data.labels, values: parts }],
      said: `distance ${query - key}; score ${score.toFixed(3)}`,
    };
  },
  window: (data, { length, window }) => {
    const seen = Math.min(window, length);
    const causal = (length * (length + 1)) / 2;
    const inside = (seen * (seen + 1)) / 2 + (length - seen) * seen;
    return {
      rows: [
        { title: "share of the pairs", labels: ["all pairs", "causal", "window"],
          values: [1, causal / length ** 2, inside / length ** 2] },
      ],
      said: `${inside.toLocaleString("en")} pairs in place of ${causal.toLocaleString("en")}: ` +
        `${(causal / inside).toFixed(1)} times fewer`,
    };
  },
};

const bars = ({ title, labels, values }) => {
  const part = make("div", "al-rows");
  part.append(make("div", "al-title", title));
  const largest = Math.max(1, ...values.map(Math.abs));
  values.forEach((value, index) => {
    const line = make("div", "al-row"), track = make("span", "al-track"), bar = make("span", "al-bar");
    const half = values.some((v) => v < 0) ? 50 : 100;
    bar.style.width = `${(half * Math.abs(value)) / largest}%`;
    if (half === 50) bar.style.marginLeft = `${value < 0 ? 50 - (50 * -value) / largest : 50}%`;
    track.append(bar);
    line.append(make("span", "al-label", labels[index]), track, make("span", "al-value", value.toFixed(3)));
    part.append(line);
  });
  return part;
};

const start = (root) => {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const form = make("div", "al-form"), shown = make("div", "al-shown");
  const said = make("output", "al-said");
  const inputs = data.sliders.map((slider) => {
    const label = make("label", "al-slider");
    const input = document.createElement("input");
    Object.assign(input, { type: "range", min: 0, max: slider.values.length - 1, step: 1, value: slider.start });
    const value = make("span", "al-value");
    label.append(make("span", "", slider.label), input, value);
    input.addEventListener("input", show);
    form.append(label);
    return { input, value, slider };
  });
  function show() {
    const values = {};
    for (const { input, value, slider } of inputs) {
      values[slider.name] = slider.values[input.value];
      value.textContent = slider.values[input.value].toLocaleString("en");
      input.setAttribute("aria-valuetext", value.textContent);
    }
    const found = KINDS[data.kind](data, values);
    shown.replaceChildren(...found.rows.map(bars));
    said.textContent = found.said;
  }
  root.querySelector(".still")?.remove();
  root.append(form, shown, said);
  show();
};

begin("live", start);
