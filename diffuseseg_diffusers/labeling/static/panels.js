// The lists beside the picture: classes, suggested places, pictures.

const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};
const hex = (color) => `#${color.map((c) => c.toString(16).padStart(2, "0")).join("")}`;
const fromHex = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));

export function showClasses(list, classes, chosen, act) {
  list.replaceChildren(...classes.map((own, i) => {
    const pick = element("button", { className: "pick", title: i < 9 ? `${own.name} (key ${i + 1})` : own.name },
      element("span", { className: "name", textContent: own.name }),
      element("span", { className: "key", textContent: i < 9 ? i + 1 : "" }));
    pick.setAttribute("aria-pressed", own.id === chosen);
    pick.addEventListener("click", () => act.pick(own.id));
    const color = element("input", { type: "color", value: hex(own.color), title: `Colour of ${own.name}` });
    color.setAttribute("aria-label", `Colour of ${own.name}`);
    color.addEventListener("change", () => act.recolor(own.id, fromHex(color.value)));
    const more = element("button", { className: "more", textContent: "…", title: `Rename or merge ${own.name}` });
    more.setAttribute("aria-label", `Rename or merge ${own.name}`);
    more.addEventListener("click", () => act.edit(own));
    return element("li", {}, color, pick, more);
  }));
}

export function showPlaces(list, places, go) {
  list.replaceChildren(...places.map((place, i) => {
    const button = element("button", { title: `Centre on place ${i + 1}` },
      element("b", { textContent: i + 1 }), element("span", { textContent: place.reason }));
    button.addEventListener("click", () => go(place));
    return element("li", {}, button);
  }));
}

export function showLines(list, lines) {
  list.hidden = !lines.length;
  list.replaceChildren(...lines.map((line) => element("li", { textContent: line })));
}

// What was left out, guessed or distorted.
export function showNotes(details, notes, leftOut) {
  const lines = Object.entries(leftOut).map(([name, why]) => `${name} ${why}`);
  showLines(details.querySelector("ul"), [...notes, ...lines.filter((line) => !notes.some((n) => n.endsWith(line)))]);
  details.hidden = !notes.length && !lines.length;
}

// Thumbnails are loaded when they come into view, and drawn with the mask over them.
export class PictureList {
  constructor(list, open, loadImage) {
    this.list = list;
    this.open = open;
    this.rows = new Map();
    this.visible = new Set();
    this.watch = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const row = this.rows.get(target.dataset.picture);
        if (!row) continue;
        if (isIntersecting) this.visible.add(row.name);
        else this.visible.delete(row.name);
        if (isIntersecting && !row.asked) {
          row.asked = true;
          loadImage(row.name).then(({ image }) => { row.image = image; this.thumbnail(row); }, () => { row.asked = false; });
        }
      }
      this.onVisible?.();
    }, { root: list, rootMargin: "200px" });
  }

  row(name) {
    if (!this.rows.has(name)) {
      const canvas = element("canvas", { width: 64, height: 64 });
      const state = element("span", { className: "dim" });
      const why = element("span", { className: "why" });
      const button = element("button", {}, canvas,
        element("span", { className: "text" }, element("span", { textContent: name }), state, why));
      button.addEventListener("click", () => this.open(name));
      const item = element("li", {}, button);
      item.dataset.picture = name;
      this.rows.set(name, { name, item, button, canvas, state, why, mask: null });
      this.watch.observe(item);
    }
    return this.rows.get(name);
  }

  show(pictures, ranking, current) {
    const rank = new Map(ranking.map((own, i) => [own.picture, { place: i + 1, ...own }]));
    const order = [...pictures].sort((a, b) => (rank.get(a.name)?.place ?? 1e9) - (rank.get(b.name)?.place ?? 1e9));
    const items = order.map((picture) => {
      const row = this.row(picture.name);
      const own = rank.get(picture.name);
      const strokes = picture.strokes === 1 ? "1 stroke" : `${picture.strokes} strokes`;
      const done = picture.strokes ? strokes : "not labelled";
      row.state.textContent = picture.ready ? `${own ? `${own.place}. ` : ""}${done}` : `waiting for features, ${done}`;
      row.why.textContent = own && own.place <= 3 ? own.reason : "";
      row.button.title = own ? `${picture.name}: ${own.reason}` : picture.name;
      row.button.setAttribute("aria-current", picture.name === current);
      return row.item;
    });
    const changed = items.length !== this.list.children.length || items.some((item, i) => this.list.children[i] !== item);
    if (changed) {
      const focused = document.activeElement;
      this.list.replaceChildren(...items);
      if (this.list.contains(focused)) focused.focus({ preventScroll: true });
    }
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
