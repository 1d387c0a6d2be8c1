// Brings the explorers on a page to life; without this script each is a complete still.
(() => {
  const make = (tag, properties, ...inside) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...inside);
    return element;
  };
  const button = (text, label, onclick) =>
    make("button", { type: "button", textContent: text, ariaLabel: label, onclick });
  const clamp = (n, length) => Math.max(0, Math.min(n, length - 1));
  const cellsIn = row => [...row.querySelectorAll(".c")];

  for (const box of document.querySelectorAll(".llmx:not([role])")) {
    const kind = box.dataset.kind;
    const known = JSON.parse(box.dataset.known);
    const table = box.querySelector("table");
    box.setAttribute("role", "group");
    box.ariaLabel = `${kind}: ${table.caption.textContent}`;
    box.dataset.lmSuppressShortcuts = "true"; // in JupyterLab the arrow keys are ours
    const controls = make("div", {});
    const panel = make("div", { className: "panel", ariaLive: "polite" });
    table.before(controls, panel);

    // What can be picked: rows of cells; for merges one row, of whole rows.
    const lines = [...table.rows].filter(line => cellsIn(line).length);
    const grid = lines.map(cellsIn);
    let rows = kind === "merges" ? [lines] : grid;
    let at = [0, 0];
    let show = () => {}; // what else changes when (row, column) is picked

    const pick = (r, c, focus) => {
      const before = rows[at[0]][at[1]];
      r = clamp(r, rows.length);
      c = clamp(c, rows[r].length);
      at = [r, c];
      const item = rows[r][c];
      before.tabIndex = -1;
      before.classList.remove("on");
      before.ariaSelected = "false";
      item.tabIndex = 0;
      item.classList.add("on");
      item.ariaSelected = "true";
      panel.replaceChildren(item.told || "");
      show(r, c, item);
      if (focus) item.focus();
    };

    if (kind === "tokens") {
      show = (r, c) => { // underline the same place in every vocabulary
        const [from, to] = known.spans[r][c];
        rows.forEach((row, i) => row.forEach((item, j) => {
          const [a, b] = known.spans[i][j];
          item.classList.toggle("also", a < to && b > from);
        }));
      };
    }

    if (kind === "merges") {
      const back = button("◀ back", "", () => pick(0, at[1] - 1));
      const next = button("next merge ▶", "", () => pick(0, at[1] + 1));
      controls.append(back, next);
      show = (r, c) => {
        lines.forEach((line, n) => line.hidden = n > c);
        back.ariaDisabled = c === 0;
        next.ariaDisabled = c === lines.length - 1;
      };
    }

    if (kind === "attention") {
      const names = lines.map(line => line.cells[0].textContent);
      const words = names.map(name => make("span", { className: "c" }, name, make("small", {})));
      controls.append(make("div", { className: "words" }, ...words));
      rows = [words, ...grid];
      const chosen = [0, 0];
      const weight = (i, j) => known.layers[chosen[0]][chosen[1]][i][j];
      const number = n => n ? (n / 100).toFixed(2) : "";
      const paint = (item, n) =>
        item.style.backgroundColor = n ? `rgba(230,159,0,${(n / 170).toFixed(2)})` : "";
      show = (r, c) => { // shade the words by the weights of the one that looks
        const query = r ? r - 1 : c;
        words.forEach((word, j) => {
          paint(word, weight(query, j));
          word.lastChild.textContent = number(weight(query, j));
          word.classList.toggle("also", j === query);
          lines[j].cells[0].classList.toggle("also", j === query);
        });
        const order = names.map((_, j) => j).sort((a, b) => weight(query, b) - weight(query, a));
        const told = (r ? [c] : order.slice(0, 3)).map(j => `${names[j]} ${number(weight(query, j)) || "0.00"}`);
        panel.replaceChildren(`${names[query]} looks at: ${told.join(", ")}`);
      };
      const turn = (level, n) => {
        chosen[level] = n;
        grid.forEach((row, i) => row.forEach((item, j) => {
          paint(item, weight(i, j));
          item.textContent = number(weight(i, j));
        }));
        choices.forEach((line, l) => line.forEach((one, m) => one.ariaPressed = m === chosen[l]));
        const [layers, heads] = choices.map(line => line.length);
        table.caption.textContent = `layer ${chosen[0] + 1} of ${layers}, head ${chosen[1] + 1} of ${heads}`;
        pick(...at);
      };
      const choices = ["layer", "head"].map((name, level) =>
        (level ? known.layers[0] : known.layers).map((_, n) =>
          button(n + 1, `${name} ${n + 1}`, () => turn(level, n))));
      choices.forEach((line, level) => line.length > 1 &&
        controls.insertBefore(make("div", {}, ["layer ", "head "][level], ...line), controls.lastChild));
      turn(0, 0);
    }

    if (kind === "model") {
      show = (r, c, item) => {
        const [first, ...others] = item.told.split("\n");
        panel.replaceChildren(first, ...others.map(line => {
          const bar = make("span", { className: "bar" });
          bar.style.width = 2 * parseInt(line) + "px";
          return make("div", {}, bar, line);
        }));
      };
    }

    const roles = kind === "merges" ? ["", "row"] : table.querySelector("span") ? ["listbox", "option"] : ["grid", "gridcell"];
    rows.flat().forEach(item => {
      const told = item.title || item.querySelector("[title]")?.title;
      Object.assign(item, { told, tabIndex: -1, role: roles[1] });
      if (told) item.ariaLabel = told;
      [item, ...item.querySelectorAll("[title]")].forEach(one => one.removeAttribute("title"));
    });
    pick(0, 0);

    const find = event => {
      const item = event.target.closest(".c");
      const r = rows.findIndex(row => row.includes(item));
      if (r >= 0) pick(r, rows[r].indexOf(item));
    };
    box.addEventListener("mouseover", find);
    box.addEventListener("click", find);
    box.addEventListener("keydown", event => {
      const moves = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
      if (!moves[event.key]) return;
      event.preventDefault();
      event.stopPropagation();
      const [down, right] = moves[event.key];
      const one = rows.length === 1;
      pick(at[0] + (one ? 0 : down), at[1] + right + (one ? down : 0), event.target.tagName !== "BUTTON");
    });
  }
})();
