// The lists beside the picture: classes, suggested places, pictures. What did not change is left as it is, so that
// whoever is in a list stays there.

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const hex = (color) => `#${color.map((c) => c.toString(16).padStart(2, "0")).join("")}`;
const fromHex = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));

// Sets a property, or an attribute, that differs.
export const put = (node, name, value) => { if (node[name] !== value) node[name] = value; };
export const mark = (node, name, value) => { if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value); };

// Puts these children into a list, and keeps the focus.
function arrange(list, items) {
  if (items.length === list.children.length && items.every((item, i) => list.children[i] === item)) return;
  const focused = document.activeElement;
  list.replaceChildren(...items);
  if (list.contains(focused)) focused.focus({ preventScroll: true });
}

// Arrow keys go from one control to the next; Tab leaves the group.
export function rove(group, selector, keys) {
  const all = () => [...group.querySelectorAll(selector)].filter((one) => !one.disabled);
  group.rove = () => {
    const controls = all();
    const stop = controls.find((one) => one === document.activeElement)
      ?? controls.find((one) => one.getAttribute("aria-current") === "true" || one.getAttribute("aria-pressed") === "true")
      ?? controls[0];
    for (const one of controls) put(one, "tabIndex", one === stop ? 0 : -1);
  };
  group.addEventListener("focusin", group.rove);
  group.addEventListener("keydown", (event) => {
    const step = { [keys[0]]: -1, [keys[1]]: 1, Home: -1e9, End: 1e9 }[event.key];
    const controls = all();
    const at = controls.indexOf(document.activeElement);
    if (step === undefined || at < 0) return;
    event.preventDefault();
    controls[Math.min(Math.max(at + step, 0), controls.length - 1)].focus();
  });
}

export class ClassList {
  constructor(list, act) {
    this.list = list;
    this.act = act;
    this.rows = new Map();
  }

  row(id) {
    if (!this.rows.has(id)) {
      const [name, key] = [element("span", { className: "name" }), element("span", { className: "key" })];
      const pick = element("button", { className: "pick" }, name, key);
      const color = element("input", { type: "color" });
      const more = element("button", { className: "more", textContent: "…" });
      pick.addEventListener("click", () => this.act.pick(id));
      color.addEventListener("change", () => this.act.recolor(id, fromHex(color.value)));
      more.addEventListener("click", () => this.act.edit(id));
      this.rows.set(id, { item: element("li", {}, color, pick, more), name, key, pick, color, more });
    }
    return this.rows.get(id);
  }

  show(classes, chosen) {
    arrange(this.list, classes.map((own, i) => {
      const row = this.row(own.id);
      const digit = i < 9 ? String(i + 1) : "";
      const pixels = own.pixels ?? 0;
      const seen = pixels ? `${pixels.toLocaleString("en")} pixels in ${own.pictures} of the pictures` : "nothing labelled";
      put(row.name, "textContent", own.name);
      put(row.key, "textContent", digit);
      put(row.pick, "title", `${own.name}${digit && ` (key ${digit})`}: ${seen}`);
      mark(row.pick, "aria-pressed", own.id === chosen);
      put(row.item, "className", pixels ? "" : "bare");
      if (row.color !== document.activeElement) put(row.color, "value", hex(own.color));
      for (const [node, what] of [[row.color, "Colour of"], [row.more, "Change"]]) {
        put(node, "title", `${what} ${own.name}`);
        mark(node, "aria-label", `${what} ${own.name}`);
      }
      return row.item;
    }));
  }
}

// Says whether they changed.
export function showPlaces(list, places, go) {
  const said = JSON.stringify(places);
  if (list.said === said) return false;
  list.said = said;
  const at = [...list.children].findIndex((item) => item.contains(document.activeElement));
  list.replaceChildren(...places.map((place, i) => {
    const button = element("button", { title: `Centre on place ${i + 1}` },
      element("b", { textContent: i + 1 }), element("span", { textContent: place.reason }));
    button.addEventListener("click", () => go(place));
    return element("li", {}, button);
  }));
  if (at >= 0) (list.children[at] ?? list.lastElementChild)?.firstChild.focus();
  return true;
}

export function showLines(list, lines) {
  const said = JSON.stringify(lines);
  if (list.said === said) return;
  list.said = said;
  list.hidden = !lines.length;
  list.replaceChildren(...lines.map((line) => element("li", { textContent: line })));
}

// What was left out, guessed or distorted.
export function showNotes(details, notes, leftOut) {
  const lines = Object.entries(leftOut).map(([name, why]) => `${name} ${why}`);
  showLines(details.querySelector("ul"), [...notes, ...lines.filter((line) => !notes.some((n) => n.endsWith(line)))]);
  put(details, "hidden", !notes.length && !lines.length);
}

const STATES = { empty: "not labelled", started: "", approved: "approved", skipped: "skipped" };
const ORDERS = {
  gain: (rank) => (a, b) => (rank.get(a.name)?.place ?? 1e9) - (rank.get(b.name)?.place ?? 1e9),
  name: () => (a, b) => a.name.localeCompare(b.name, "en", { numeric: true }),
  strokes: () => (a, b) => b.strokes - a.strokes,
};

// Thumbnails are loaded when they come into view, and drawn with the mask over them.
export class PictureList {
  constructor(list, open, loadImage) {
    this.list = list;
    this.open = open;
    this.loadImage = loadImage;
    this.rows = new Map();
    this.visible = new Set();
    this.order = []; // names, as they are shown
    this.search = "";
    this.only = ""; // a state, or all
    this.sort = "gain";
    rove(list, "button", ["ArrowUp", "ArrowDown"]);
    this.watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const row = this.rows.get(target.dataset.picture);
        if (!row) continue;
        if (isIntersecting) this.visible.add(row.name);
        else this.visible.delete(row.name);
        if (isIntersecting && !row.asked) this.load(row);
      }
      this.onVisible?.();
    }, { root: list, rootMargin: "200px" });
  }

  load(row) {
    row.asked = true;
    this.loadImage(row.name).then(({ image }) => { row.image = image; this.thumbnail(row); }, () => { row.asked = false; });
  }

  // After another window or level.
  reload() {
    for (const row of this.rows.values()) {
      if (this.visible.has(row.name)) this.load(row);
      else row.asked = false;
    }
  }

  row(name) {
    if (!this.rows.has(name)) {
      const canvas = element("canvas", { width: 64, height: 64 });
      const state = element("span", { className: "dim" });
      const why = element("span", { className: "why" });
      const button = element("button", { tabIndex: -1 }, canvas,
        element("span", { className: "text" }, element("span", { textContent: name }), state, why));
      button.addEventListener("click", () => this.open(name));
      const item = element("li", {}, button);
      item.dataset.picture = name;
      this.rows.set(name, { name, item, button, canvas, state, why, mask: null });
      this.watch.observe(item);
    }
    return this.rows.get(name);
  }

  // `shifted`: what stands above the list has another height.
  show(pictures, ranking, current, shifted) {
    const rank = new Map(ranking.map((own, i) => [own.picture, { place: i + 1, ...own }]));
    const text = this.search.toLowerCase();
    const shown = pictures.filter((own) => own.name.toLowerCase().includes(text) && (!this.only || own.state === this.only));
    shown.sort(ORDERS[this.sort](rank));
    const before = this.order;
    this.order = shown.map((picture) => picture.name);
    arrange(this.list, shown.map((picture) => {
      const row = this.row(picture.name);
      const own = rank.get(picture.name);
      const strokes = picture.strokes === 1 ? "1 stroke" : `${picture.strokes} strokes`;
      const done = [STATES[picture.state], picture.strokes ? strokes : ""].filter(Boolean).join(", ");
      put(row.state, "textContent", picture.ready ? `${own ? `${own.place}. ` : ""}${done}` : `waiting for features, ${done}`);
      put(row.why, "textContent", own && own.place <= 3 ? own.reason : "");
      put(row.button, "title", own ? `${picture.name}: ${own.reason}` : picture.name);
      mark(row.button, "aria-current", picture.name === current);
      mark(row.item, "data-state", picture.state);
      return row.item;
    }));
    this.list.rove();
    const moved = shifted || this.current !== current || before.indexOf(current) !== this.order.indexOf(current);
    this.current = current;
    if (moved && this.order.includes(current)) this.rows.get(current).item.scrollIntoView({ block: "nearest", inline: "nearest" });
    return shown.length;
  }

  // The name so many places further down the list.
  beside(step) {
    const at = this.order.indexOf(this.current);
    return this.order[at < 0 ? 0 : Math.min(Math.max(at + step, 0), this.order.length - 1)];
  }

  setMask(name, mask, colors) {
    const row = this.rows.get(name);
    if (!row) return;
    row.mask = mask && { ...mask, ids: Uint8Array.from(atob(mask.ids), (c) => c.charCodeAt(0)), colors };
    this.thumbnail(row);
  }

  thumbnail(row) {
    if (!row.image) return;
    const context = row.canvas.getContext("2d");
    const scale = Math.min(64 / row.image.width, 64 / row.image.height);
    const [w, h] = [row.image.width * scale, row.image.height * scale];
    const [x, y] = [(64 - w) / 2, (64 - h) / 2];
    context.clearRect(0, 0, 64, 64);
    context.drawImage(row.image, x, y, w, h);
    if (!row.mask) return;
    const { height, width, ids, colors } = row.mask;
    const data = new ImageData(width, height);
    ids.forEach((id, i) => {
      const color = colors.get(id) ?? [0, 0, 0];
      data.data.set([...color, color.some(Boolean) ? 130 : 0], 4 * i); // black would hide dark pictures
    });
    const small = new OffscreenCanvas(width, height);
    small.getContext("2d").putImageData(data, 0, 0);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, x, y, w, h);
  }
}
