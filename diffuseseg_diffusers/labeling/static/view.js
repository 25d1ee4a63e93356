// The picture on the canvas. Labels are class ids at the picture's own resolution; canvases only show them.

import { connected, disc, enclosed } from "./shapes.js";

export const UNLABELED = 255;

export class View {
  // `act` has what happens with a stroke (`stroke`), a region to accept (`accept`), a stroke without a class (`unnamed`),
  // another size of the brush (`size`), and another place of the cursor (`moved`).
  constructor(canvas, act) {
    this.canvas = canvas;
    this.act = act;
    this.tool = "brush";
    this.size = 3;
    this.label = null;
    this.opacity = { picture: 1, labels: 0.9, mask: 0.45, doubt: 0 };
    this.colors = new Map();
    this.places = [];
    this.stale = false;
    this.outlines = false;
    this.fitted = true; // until it is zoomed or moved
    this.width = this.height = 0;
    this.cursor = null;
    this.corners = []; // of the polygon that is drawn
    new ResizeObserver(() => this.resize()).observe(canvas);
    canvas.addEventListener("pointerdown", (event) => this.down(event));
    canvas.addEventListener("pointermove", (event) => this.move(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (event) => this.up(event));
    canvas.addEventListener("pointerleave", () => { this.pointer = null; this.draw(); });
    canvas.addEventListener("blur", () => { this.spaceHeld = false; if (this.byKey) this.end(); });
    addEventListener("blur", () => { this.spaceHeld = false; });
    canvas.addEventListener("dblclick", () => this.closePolygon());
    canvas.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    this.pointers = new Map();
  }

  // A picture with its labels; mask and uncertainty follow with `setMask`.
  open(image, labels) {
    this.image = image;
    const same = this.width === image.width && this.height === image.height;
    this.width = image.width;
    this.height = image.height;
    this.layers = {};
    for (const name of ["labels", "mask", "doubt"]) {
      this.layers[name] = new OffscreenCanvas(this.width, this.height);
    }
    this.mask = this.doubt = this.stroke = null;
    this.corners = [];
    this.places = [];
    this.cursor = { x: this.width >> 1, y: this.height >> 1 };
    this.setLabels(labels);
    if (!same || !this.scale) this.fit();
  }

  // Another rendering of the picture, at any size.
  setImage(image) {
    this.image = image;
    this.draw();
  }

  setLabels(ids) {
    this.labels = ids;
    this.paint("labels", ids);
    this.draw();
  }

  setMask(ids, doubt) {
    this.mask = ids;
    this.doubt = doubt;
    this.stale = false;
    this.paint("mask", ids);
    this.painted = false; // the doubt, which is painted when it is to be seen
    this.draw();
  }

  setColors(classes) {
    this.colors = new Map(classes.map((own) => [own.id, own.color]));
    if (!this.image) return;
    this.paint("labels", this.labels);
    this.paint("mask", this.mask);
    this.draw();
  }

  // Class ids to the pixels of a layer; colours are never read back.
  paint(name, ids) {
    const context = this.layers[name].getContext("2d");
    if (!ids) {
      context.clearRect(0, 0, this.width, this.height);
      return;
    }
    const data = new ImageData(this.width, this.height);
    const pixels = new Uint32Array(data.data.buffer);
    const table = new Uint32Array(256);
    for (const [id, [r, g, b]] of this.colors) {
      const hides = name === "mask" && !(r || g || b); // black would hide dark pictures
      table[id] = hides ? 0 : 0xff000000 | (b << 16) | (g << 8) | r;
    }
    const inner = name === "mask" && this.outlines ? (i) => this.isInner(ids, i) : () => false;
    for (let i = 0; i < pixels.length; i++) pixels[i] = inner(i) ? 0 : table[ids[i]];
    context.putImageData(data, 0, 0);
  }

  // Whether all four neighbours of a pixel are of its class.
  isInner(ids, i) {
    const x = i % this.width;
    const alike = (j, there) => !there || ids[j] === ids[i];
    return alike(i - 1, x > 0) && alike(i + 1, x < this.width - 1) && alike(i - this.width, i >= this.width)
      && alike(i + this.width, i + this.width < ids.length);
  }

  setOutlines(on) {
    this.outlines = on;
    if (this.mask) this.paint("mask", this.mask);
    this.draw();
  }

  paintDoubt() {
    const data = new ImageData(this.width, this.height);
    const pixels = new Uint32Array(data.data.buffer);
    // A colour that pictures seldom have, the stronger the more doubt.
    const table = Uint32Array.from({ length: 256 }, (_, doubt) => (Math.sqrt(255 * doubt) << 24) | 0xff00be);
    for (let i = 0; i < pixels.length; i++) pixels[i] = table[this.doubt[i]];
    this.layers.doubt.getContext("2d").putImageData(data, 0, 0);
    this.painted = true;
  }

  // The canvas has as many pixels as the window gives it; what is in its middle stays there.
  resize() {
    const box = this.canvas.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    const [width, height] = [box.width, box.height].map((n) => Math.max(1, Math.round(n * ratio)));
    this.left += (width - this.canvas.width) / 2;
    this.top += (height - this.canvas.height) / 2;
    this.canvas.width = width;
    this.canvas.height = height;
    if (this.fitted) this.fit();
    else this.draw();
  }

  fit() {
    this.fitted = true;
    if (!this.image) return;
    this.scale = 0.94 * Math.min(this.canvas.width / this.width, this.canvas.height / this.height);
    this.left = (this.canvas.width - this.scale * this.width) / 2;
    this.top = (this.canvas.height - this.scale * this.height) / 2;
    this.draw();
  }

  // The pixel that is pointed at, by keyboard or mouse.
  get at() {
    return this.byKey ? this.cursor : this.pointer ?? null;
  }

  center({ x, y }) {
    this.fitted = false;
    this.left = this.canvas.width / 2 - (x + 0.5) * this.scale;
    this.top = this.canvas.height / 2 - (y + 0.5) * this.scale;
    this.cursor = { x, y };
    this.draw();
  }

  zoom(factor, x = this.canvas.width / 2, y = this.canvas.height / 2) {
    const scale = Math.min(Math.max(this.scale * factor, 0.05), 200);
    this.left = x - ((x - this.left) * scale) / this.scale;
    this.top = y - ((y - this.top) * scale) / this.scale;
    this.scale = scale;
    this.fitted = false;
    this.act.moved(null);
    this.draw();
  }

  draw() {
    if (!this.image || this.queued) return;
    this.queued = true;
    requestAnimationFrame(() => {
      this.queued = false;
      this.render();
    });
  }

  render() {
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, this.canvas.width, this.canvas.height);
    context.setTransform(this.scale, 0, 0, this.scale, this.left, this.top);
    context.imageSmoothingEnabled = this.scale < 1;
    if (this.doubt && this.opacity.doubt && !this.painted) this.paintDoubt();
    const layers = [["picture", this.image], ["mask", this.mask && this.layers.mask],
      ["doubt", this.doubt && this.layers.doubt], ["labels", this.layers.labels]];
    for (const [name, source] of layers) {
      if (!source || !this.opacity[name]) continue;
      const strength = name !== "mask" ? 1 : (this.outlines ? 2 : 1) * (this.stale ? 0.6 : 1);
      context.globalAlpha = Math.min(this.opacity[name] * strength, 1);
      context.drawImage(source, 0, 0, this.width, this.height);
    }
    context.globalAlpha = 1;
    context.setTransform(1, 0, 0, 1, 0, 0);
    this.renderPlaces(context);
    this.renderPolygon(context);
    this.renderCursor(context);
  }

  renderPlaces(context) {
    const radius = 10 * (devicePixelRatio || 1);
    context.font = `bold ${radius * 1.2}px system-ui, sans-serif`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    this.places.forEach((place, i) => {
      const x = this.left + (place.x + 0.5) * this.scale;
      const y = this.top + (place.y + 0.5) * this.scale;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fillStyle = "#fffc";
      context.fill();
      context.lineWidth = 2;
      context.strokeStyle = "#0b5cad";
      context.stroke();
      context.fillStyle = "#0b5cad";
      context.fillText(i + 1, x, y);
    });
  }

  renderPolygon(context) {
    if (!this.corners.length) return;
    context.beginPath();
    for (const at of [...this.corners, ...(this.at ? [this.at] : [])]) {
      context.lineTo(this.left + (at.x + 0.5) * this.scale, this.top + (at.y + 0.5) * this.scale);
    }
    for (const [width, color] of [[4, "#000a"], [2, "#fff"]]) {
      context.lineWidth = width;
      context.strokeStyle = color;
      context.stroke();
    }
  }

  renderCursor(context) {
    const at = document.activeElement === this.canvas && this.byKey ? this.cursor : this.pointer;
    if (!at || this.tool === "pan") return;
    const drawn = ["brush", "erase"].includes(this.tool) ? this.size : 1;
    context.beginPath();
    context.arc(this.left + (at.x + 0.5) * this.scale, this.top + (at.y + 0.5) * this.scale,
      Math.max((drawn / 2) * this.scale, 3), 0, 2 * Math.PI);
    context.lineWidth = 3;
    context.strokeStyle = "#000a";
    context.stroke();
    context.lineWidth = 1.5;
    context.strokeStyle = "#fff";
    context.stroke();
  }

  // From the window to pixels of the picture.
  pixel(event) {
    const box = this.canvas.getBoundingClientRect();
    const ratio = this.canvas.width / box.width;
    return {
      x: Math.floor(((event.clientX - box.left) * ratio - this.left) / this.scale),
      y: Math.floor(((event.clientY - box.top) * ratio - this.top) / this.scale),
    };
  }

  inside({ x, y }) {
    return x >= 0 && y >= 0 && x < this.width && y < this.height;
  }

  down(event) {
    if (!this.image) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, event);
    this.byKey = false;
    if (this.pointers.size > 1) { // two fingers pan and zoom
      this.clicked = null;
      this.drop();
      return;
    }
    const at = this.pixel(event);
    if (this.tool === "pan" || this.spaceHeld || event.button === 1) this.panning = true;
    else if (event.button === 2) this.begin(at, UNLABELED); // drags of the right button erase
    else if (event.button !== 0) return;
    else if (["brush", "erase"].includes(this.tool)) this.begin(at);
    else this.clicked = at; // if no second finger comes
  }

  // The tool at a pixel, by pointer or key.
  use(at) {
    if (this.tool === "accept") { if (this.inside(at)) this.act.accept(at.y, at.x); }
    else if (this.tool === "fill") this.fill(at);
    else if (this.tool === "polygon") this.addCorner(at);
    else this.begin(at);
  }

  move(event) {
    if (!this.image) return;
    const before = this.pointers.get(event.pointerId);
    this.pointer = this.pixel(event);
    this.act.moved(this.pointer);
    if (before) {
      if (this.pointers.size === 2) this.pinch(event, before);
      else if (this.panning) this.pan(event.clientX - before.clientX, event.clientY - before.clientY);
      else if (this.stroke) {
        for (const step of event.getCoalescedEvents?.() ?? [event]) this.extend(this.pixel(step));
        this.extend(this.pointer);
      }
      this.pointers.set(event.pointerId, event);
    }
    this.draw();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    this.panning = false;
    const clicked = this.clicked;
    this.clicked = null;
    if (event.type === "pointercancel") this.drop();
    else if (clicked) this.use(clicked);
    else this.end();
  }

  pan(dx, dy) {
    const ratio = devicePixelRatio || 1;
    this.fitted = false;
    this.left += dx * ratio;
    this.top += dy * ratio;
    this.draw();
  }

  pinch(event, before) {
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)[1];
    const distance = (a) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY);
    const box = this.canvas.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    const middle = { x: (event.clientX + other.clientX) / 2 - box.left, y: (event.clientY + other.clientY) / 2 - box.top };
    this.zoom(distance(event) / Math.max(distance(before), 1), middle.x * ratio, middle.y * ratio);
    this.pan((event.clientX - before.clientX) / 2, (event.clientY - before.clientY) / 2);
  }

  wheel(event) {
    event.preventDefault();
    if (!this.image) return;
    if (event.ctrlKey) {
      this.act.size(this.size - Math.sign(event.deltaY));
      return;
    }
    const box = this.canvas.getBoundingClientRect();
    const ratio = devicePixelRatio || 1;
    const factor = Math.exp(-event.deltaY / 300);
    this.zoom(factor, (event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio);
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!this.image) return;
    if (event.key in steps) {
      const [dx, dy] = steps[event.key].map((d) => d * (event.shiftKey ? Math.max(8, this.size) : 1));
      this.cursor.x = Math.min(Math.max(this.cursor.x + dx, 0), this.width - 1);
      this.cursor.y = Math.min(Math.max(this.cursor.y + dy, 0), this.height - 1);
      this.byKey = true;
      event.preventDefault();
      if (this.stroke) this.extend({ ...this.cursor }); // the brush is down
      this.follow();
      this.act.moved(this.cursor, true);
      this.draw();
    } else if (event.key === "Enter") {
      this.byKey = true;
      event.preventDefault();
      if (this.stroke) this.end();
      else if (this.corners.length && event.shiftKey) this.closePolygon();
      else {
        this.use({ ...this.cursor });
        this.end();
      }
    } else if (event.key.toLowerCase() === "d" && !event.repeat && !event.ctrlKey && !event.metaKey && !event.altKey) {
      this.byKey = true;
      if (this.stroke) this.end();
      else if (["brush", "erase"].includes(this.tool)) this.begin({ ...this.cursor });
    } else if (event.key === "Backspace") {
      this.corners.pop();
      this.draw();
    }
  }

  // Moves the picture until the keyboard's cursor is in the window.
  follow() {
    const margin = 24 * (devicePixelRatio || 1);
    const x = this.left + (this.cursor.x + 0.5) * this.scale;
    const y = this.top + (this.cursor.y + 0.5) * this.scale;
    this.left += Math.min(Math.max(x, margin), this.canvas.width - margin) - x;
    this.top += Math.min(Math.max(y, margin), this.canvas.height - margin) - y;
  }

  begin(at, label = this.tool === "erase" ? UNLABELED : this.label) {
    if (label === null) {
      this.act.unnamed();
      return;
    }
    this.end(); // that of the keyboard
    this.stroke = { label, last: at, before: new Map() };
    this.disc(at);
    this.show();
  }

  extend(to) {
    const from = this.stroke.last;
    const steps = Math.max(Math.abs(to.x - from.x), Math.abs(to.y - from.y), 1);
    for (let i = 1; i <= steps; i++) {
      this.disc({ x: Math.round(from.x + ((to.x - from.x) * i) / steps), y: Math.round(from.y + ((to.y - from.y) * i) / steps) });
    }
    this.stroke.last = to;
    this.show();
  }

  disc(at) {
    for (const i of disc(at, this.size, this.width, this.height)) {
      if (!this.stroke.before.has(i)) {
        this.stroke.before.set(i, this.labels[i]);
        this.stroke.fresh ??= [];
        this.stroke.fresh.push(i);
      }
      this.labels[i] = this.stroke.label;
    }
  }

  // New pixels of the stroke to their layer, without painting all of it again.
  show() {
    const context = this.layers.labels.getContext("2d");
    const color = this.colors.get(this.stroke.label);
    if (color) context.fillStyle = `rgb(${color.join(",")})`;
    for (const i of this.stroke.fresh ?? []) {
      const x = i % this.width, y = Math.floor(i / this.width);
      if (color) context.fillRect(x, y, 1, 1);
      else context.clearRect(x, y, 1, 1);
    }
    this.stroke.fresh = [];
    this.draw();
  }

  // A stroke that changes nothing, such as the second of a double click, is none.
  end() {
    const stroke = this.stroke;
    this.stroke = null;
    if (!stroke || [...stroke.before.values()].every((id) => id === stroke.label)) return;
    this.act.stroke(this.runs(stroke), () => this.revert(stroke));
  }

  cancel() {
    this.corners = [];
    this.drop();
  }

  // Drops the stroke at hand.
  drop() {
    if (this.stroke) this.revert(this.stroke);
    this.stroke = null;
    this.draw();
  }

  // The label at hand to a pixel and all that touch it and are labelled alike.
  fill(at) {
    if (this.label === null) this.act.unnamed();
    else if (this.inside(at)) this.drawPixels(connected(this.labels, this.width, at.y * this.width + at.x));
  }

  addCorner(at) {
    if (this.label === null) {
      this.act.unnamed();
      return;
    }
    const last = this.corners.at(-1);
    if (last?.x === at.x && last?.y === at.y) return; // the second click of a double click
    this.corners.push(at);
    this.draw();
  }

  closePolygon() {
    const corners = this.corners;
    this.corners = [];
    this.draw();
    if (this.tool === "polygon" && corners.length > 2) this.drawPixels(enclosed(corners, this.width, this.height));
  }

  // A stroke of the label at hand, all at once.
  drawPixels(pixels) {
    this.end();
    const before = new Map();
    for (const i of pixels) {
      before.set(i, this.labels[i]);
      this.labels[i] = this.label;
    }
    this.stroke = { label: this.label, before };
    this.setLabels(this.labels);
    this.end();
  }

  revert(stroke) {
    for (const [i, id] of stroke.before) this.labels[i] = id;
    this.setLabels(this.labels);
  }

  // Rows of a stroke: row, first column, column behind the last, class id.
  runs(stroke) {
    const touched = [...stroke.before.keys()].sort((a, b) => a - b);
    const runs = [];
    for (const i of touched) {
      const y = Math.floor(i / this.width), x = i % this.width;
      const last = runs.at(-1);
      if (last && last[0] === y && last[2] === x) last[2]++;
      else runs.push([y, x, x + 1, stroke.label]);
    }
    return runs;
  }

  drawRuns(runs) {
    for (const [y, start, stop, id] of runs) this.labels.fill(id, y * this.width + start, y * this.width + stop);
    this.setLabels(this.labels);
  }
}
