// What the page knows, and what happens when.

import * as api from "./api.js";
import { editClass, pushPipeline, showHelp } from "./dialogs.js";
import { Display } from "./display.js";
import { Outbox } from "./outbox.js";
import { ClassList, mark, PictureList, put, rove, showLines, showNotes, showPlaces } from "./panels.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const TOOLS = ["brush", "erase", "polygon", "fill", "accept", "pan"];
const state = { revision: 0, classes: [], pictures: [], ranking: [], finish: { state: "idle" } };
let current = null; // name of the open picture
let known = 0; // revision at which its labels were read, with our own strokes since
let latest = 0; // newest revision that an answer told: older states that arrive late are asked for again
let older = []; // strokes of the open picture from before this page
let mine = []; // strokes of this page, in all pictures: { picture, number }
let redoable = [];
let outbox = null; // these two are of the session, which the first state names
let display = null;
const passed = new Set(); // pictures that "Next" went by since the last stroke

const view = new View($("view"), { stroke, accept, unnamed, size: setSize, moved });
const classes = new ClassList($("classes"), {
  pick: pickClass,
  recolor: attempt(async (id, color) => { await api.changeClass(id, { color }); await loadState(); refresh(); }),
  edit: (id) => editClass(id, () => state.classes, changeClasses),
});
const list = new PictureList($("pictures"), open, (name) => getImage(name, 64));

// Messages.

let away = false; // the message says that the server does not answer
let sticky = ""; // a message that stays until it is closed

function fail(error, stays = false) {
  if (stays) sticky = error.message;
  $("message-text").textContent = stays || !sticky ? error.message : `${sticky} ${error.message}`;
  $("message").hidden = false;
  away = error.status === 0;
  if (!(error instanceof api.ServerError)) console.error(error);
}

function settle() {
  away = false;
  if (sticky) $("message-text").textContent = sticky;
  else $("message").hidden = true;
}
$("message-close").addEventListener("click", () => { sticky = ""; settle(); });

function attempt(action) {
  return async (...given) => {
    try {
      const result = await action(...given);
      settle();
      return result;
    } catch (error) {
      fail(error);
    }
  };
}

// For what runs by itself: it shows its errors, and takes back no others than its own.
const attemptQuietly = (action) => async () => {
  try {
    await action();
    if (away && !outbox?.waiting) settle();
  } catch (error) {
    fail(error);
  }
};

// Pictures.

let opening = null;

const getImage = (name, side = null) => display.get(name, (values) => api.getImage(name, values, side));

// Labels that are no older than what an answer told of.
async function getLabels(name) {
  const labels = await api.getLabels(name);
  return labels.revision < latest ? api.getLabels(name) : labels;
}

async function openPicture(name) {
  view.end(); // no key takes a stroke away
  opening = name;
  $("status").textContent = `Opening ${name} …`;
  const found = await getImage(name);
  const labels = await getLabels(name);
  if (opening !== name) return; // another one was chosen meanwhile
  view.end();
  current = name;
  if (wanted() !== name) location.hash = encodeURIComponent(name);
  known = labels.revision;
  older = labels.strokes.filter((number) => !mine.some((own) => own.number === number));
  showLines($("about"), found.notes);
  display.show(found.display);
  view.open(found.image, labels.ids);
  for (const { runs } of outbox.of(name)) view.drawRuns(runs); // on their way
  if (document.activeElement === document.body) view.canvas.focus({ preventScroll: true });
  showLists();
  await refresh();
}
function open(name) {
  return attempt(openPicture)(name);
}

// The picture that the address names.
function wanted() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return ""; // a part of a name
  }
}
addEventListener("hashchange", () => {
  const name = wanted();
  if (name !== current && state.pictures.some((own) => own.name === name)) open(name);
});

let rendering = 0;

const showDisplay = attempt(async () => {
  const [picture, number] = [current, ++rendering];
  const found = await getImage(picture, display.moving ? 1024 : null);
  if (picture !== current || number !== rendering) return; // a later one comes
  view.setImage(found.image);
  showLines($("about"), found.notes);
  display.show(found.display);
  if (!display.moving) list.reload();
});

async function reloadLabels() {
  const picture = current;
  const labels = await getLabels(picture);
  if (picture !== current || view.stroke) return; // what is being drawn is newer
  known = labels.revision;
  mine = mine.filter((own) => own.picture !== picture || labels.strokes.includes(own.number)); // undone elsewhere
  older = older.filter((number) => labels.strokes.includes(number));
  view.setLabels(labels.ids);
  for (const { runs } of outbox.of(picture)) view.drawRuns(runs);
  moved(view.at);
}

// Strokes.

function stroke(runs, revert) {
  const picture = current;
  view.stale = true;
  passed.clear();
  redoable = [];
  moved(view.at);
  outbox.add({ picture, runs, revision: known, began: performance.now() }, () => { if (picture === current) revert(); });
}

const outgoing = {
  send: ({ picture, runs, key, revision }) =>
    api.sendStroke({ session: outbox.session, picture, runs, key, revision: picture === current ? known : revision }),
  async sent(item, answer, own) {
    settle();
    await attempt(drawn)(item.picture, answer, own);
    if (item.picture === current) refresh(item.began);
  },
  async refused(item, error) {
    fail(new api.ServerError(`A stroke in ${item.picture} was dropped: ${error.message}`, error.status), true);
    if (item.picture === current) await reloadLabels().catch(fail);
  },
  async behind() { // the session was put back to an earlier state: the stroke goes on top of that
    latest = known = 0;
    await loadState().catch(fail);
    if (current) await reloadLabels().catch(fail);
  },
  changed(error) {
    $("saved").textContent = outbox.state;
    $("saved").classList.toggle("waiting", outbox.waiting && outbox.items.length > 0);
    if (error) fail(error);
  },
};

function accept(y, x) {
  const picture = current;
  attempt(async () => {
    await outbox.settled();
    const answer = await api.sendAccept(picture, y, x, known);
    redoable = [];
    await drawn(picture, answer, true);
    if (picture === current) await reloadLabels();
    refresh();
  })();
}

async function drawn(picture, answer, own) {
  latest = Math.max(latest, answer.revision);
  if (own) mine.push({ picture, number: answer.number });
  else if (picture === current) older.push(answer.number);
  const row = state.pictures.find((p) => p.name === picture);
  if (row) Object.assign(row, { strokes: answer.strokes, state: answer.strokes ? "started" : "empty" });
  if (picture === current) {
    if (answer.stale) { // another tab drew here
      await reloadLabels();
      await loadState();
    } else known = answer.revision;
  }
  showLists();
}

function unnamed() {
  fail(new api.ServerError(state.classes.length ? "Choose a class first, then draw." : "Name a class first, then draw."));
  setTimeout(() => $("class-name").focus()); // after the browser has given it to the canvas
}

const undo = attempt(async () => {
  if (view.stroke || view.corners.length) {
    view.cancel();
    return;
  }
  if (outbox.takeBack(current)) return;
  await outbox.settled(); // the last stroke has no number before
  await step(mine.pop() ?? (older.length ? { picture: current, number: older.pop() } : null), true);
});
const redo = attempt(async () => {
  view.end();
  await outbox.settled();
  await step(redoable.pop(), false);
});

// Undoes or redoes a stroke, in its picture.
async function step(own, undone) {
  if (!own) return;
  const left = redoable;
  try {
    if (own.picture !== current) await openPicture(own.picture);
    const { revision } = await api.setUndone(own.number, undone);
    latest = Math.max(latest, revision);
  } catch (error) {
    if (error.status !== 400) (undone ? mine : left).push(own); // its picture may be gone
    throw error;
  }
  (undone ? left : mine).push(own);
  redoable = left;
  await reloadLabels();
  await loadState();
  refresh();
}

// Masks: one request at a time, the last state always follows; the old mask stays, and is marked.

let asked = false;
let running = false;
let failed = false; // the mask is an old one
let since = null;

async function refresh(began) {
  asked = true;
  since ??= began ?? null;
  $("badge").hidden = !view.mask;
  view.stale = true;
  view.draw();
  if (running) return;
  running = true;
  failed = false;
  try {
    while (asked) {
      asked = false;
      const [picture, from] = [current, since];
      since = null;
      const answer = await api.getMask(picture);
      if (picture !== current) continue;
      view.setMask(answer.ids, answer.doubt);
      moved(view.at);
      if (from !== null && answer.ids) {
        requestAnimationFrame(() => performance.measure("stroke-to-mask", { start: from, end: performance.now() }));
      }
      showStatus(answer);
      if (asked) continue;
      await Promise.all([refreshSmall(), refreshSuggestions()]);
    }
  } catch (error) {
    failed = true; // `watch` asks again
    fail(error);
  } finally {
    running = false;
    view.stale = failed;
    $("badge").hidden = !failed || !view.mask;
    view.draw();
  }
}

async function refreshSmall() {
  const ready = state.pictures.filter((p) => p.ready && list.visible.has(p.name)).map((p) => p.name);
  if (!ready.length) return;
  const { masks } = await api.getSmallMasks(ready);
  for (const name of ready) list.setMask(name, masks[name] ?? null, view.colors);
}
list.onVisible = () => { if (!running && current) refreshSmall().catch(fail); };

async function refreshSuggestions() {
  const picture = current;
  const found = await api.getSuggestions(picture);
  if (picture !== current) return;
  state.ranking = found.ranking;
  view.places = found.places[picture] ?? [];
  showLists();
  view.draw();
}

// What is shown.

function showStatus(answer) {
  const strokes = state.pictures.reduce((sum, p) => sum + p.strokes, 0);
  const labelled = state.pictures.filter((p) => p.strokes).length;
  const counts = `${strokes} ${strokes === 1 ? "stroke" : "strokes"} in ${labelled} of ${state.pictures.length} pictures`;
  const hint = state.classes.length < 2 ? "add two classes and draw a stroke of each" : "draw strokes of two classes";
  const size = `${view.width} × ${view.height} pixels`;
  const ready = state.pictures.find((p) => p.name === current)?.ready;
  const waiting = ready ? `${counts}; ${hint} for a mask` : `${counts}; the features of this picture are not there yet`;
  const made = answer.ids ? `Mask from ${counts}, fitted and predicted in ${answer.milliseconds} ms` : waiting;
  $("status").textContent = `${made} · ${current}, ${size}`;
}

// What is under the mouse or the keyboard's cursor; the latter is spoken, when it rests.
let speaking;

function moved(at, byKey = false) {
  const zoom = `${Math.round((100 * view.scale) / (devicePixelRatio || 1))} %`;
  const name = (ids) => state.classes.find((own) => own.id === ids?.[at.y * view.width + at.x])?.name;
  const inside = at && view.inside(at);
  const [label, mask] = inside ? [name(view.labels), name(view.mask)] : [];
  const what = [label && `label ${label}`, mask && `mask ${mask}`].filter(Boolean).join(", ") || "no label";
  const text = inside ? `column ${at.x}, row ${at.y}: ${what}; zoom ${zoom}` : `zoom ${zoom}`;
  $("readout").textContent = text;
  if (!byKey) return;
  clearTimeout(speaking);
  speaking = setTimeout(() => { $("spoken").textContent = text; }, 400);
}

function showLists() {
  const shifted = showPlaces($("places"), view.places, (place) => { view.center(place); view.canvas.focus(); });
  const shown = list.show(state.pictures, state.ranking, current, shifted);
  const total = state.pictures.length;
  put($("count"), "textContent", shown === total ? `(${total})` : `(${shown} of ${total})`);
  put($("undo"), "disabled", !mine.length && !older.length && !outbox.items.length);
  put($("redo"), "disabled", !redoable.length);
  const own = state.pictures.find((p) => p.name === current);
  for (const what of ["approved", "skipped"]) mark($(`set-${what}`), "aria-pressed", own?.state === what);
}

function showAllClasses() {
  if (!state.classes.some((own) => own.id === view.label)) view.label = state.classes[0]?.id ?? null;
  const colors = JSON.stringify(state.classes.map((own) => [own.id, own.color]));
  if (colors !== view.colored) view.setColors(state.classes);
  view.colored = colors;
  classes.show(state.classes, view.label);
}

function pickClass(id) {
  view.label = id;
  if (!["brush", "polygon", "fill"].includes(view.tool)) setTool("brush");
  showAllClasses();
}

async function changeClasses(action) {
  await outbox.settled();
  if (await action() === false) return false; // after all not
  await loadState();
  if (current) await reloadLabels();
  refresh();
  return true;
}

async function loadState() {
  let found = await api.getState();
  if (outbox && found.session !== outbox.session) { // another one answers at this address
    location.reload();
    throw new api.ServerError("Another session is served here now; the page is loaded again.");
  }
  if (found.revision < latest) found = await api.getState(); // it had been on its way when we drew
  if (found.revision < latest) latest = found.revision; // the session was put back
  Object.assign(state, found);
  outbox ??= new Outbox(found.session, outgoing.send, outgoing);
  display ??= new Display(found.session, showDisplay);
  showAllClasses();
  showLists();
  const { done, total, error } = found.progress;
  const said = `Features of ${done} of ${total} pictures`;
  for (const [name, value] of Object.entries({ hidden: done >= total || !!error, max: total, value: done, title: said })) {
    put($("progress"), name, value);
  }
  if (error) fail(new api.ServerError(error));
  showFinish(found.finish);
  showNotes($("notes"), found.notes, found.left_out);
  return found;
}

function say(text) {
  if ($("finish-state").textContent !== text) $("finish-state").textContent = text;
}

function showFinish(finish) {
  put($("finish"), "disabled", finish.state === "running");
  put($("push"), "disabled", finish.state !== "done");
  if (JSON.stringify(finish) === state.said) return;
  state.said = JSON.stringify(finish);
  say({
    idle: "",
    running: "Fitting the full recipe; strokes may go on.",
    done: `Fitted${finish.seconds ? ` in ${finish.seconds} s` : ""}; the pipeline is in ${finish.folder}.${finish.behind
      ? ` Strokes or classes have changed since: press “Finish” again to have them in it.` : ""}`,
    failed: finish.error,
  }[finish.state]);
}

// Tools and keys.

function setTool(tool) {
  if (view.stroke) view.end();
  view.corners = [];
  view.tool = tool;
  for (const name of TOOLS) $(`tool-${name}`).setAttribute("aria-pressed", name === tool);
  $("view").style.cursor = { pan: "grab", accept: "cell" }[tool] ?? "crosshair";
  view.draw();
}

function setSize(size) {
  view.size = Math.min(Math.max(size, 1), 64);
  $("size").value = view.size;
  $("size-value").textContent = view.size;
  view.draw();
}

// The best picture that was not looked at since the last stroke; then from the top again.
async function openNext() {
  const done = new Set(state.pictures.filter((p) => ["approved", "skipped"].includes(p.state)).map((p) => p.name));
  const left = state.ranking.map((own) => own.picture).filter((name) => !done.has(name));
  passed.add(current);
  if (left.every((name) => passed.has(name))) {
    passed.clear();
    passed.add(current);
  }
  const best = left.find((name) => !passed.has(name));
  if (best) await open(best);
  view.canvas.focus({ preventScroll: true });
}

async function openBeside(steps) {
  const name = list.beside(steps);
  if (name !== undefined && name !== current) await open(name);
}

// Marks the open picture as approved or skipped, and goes on; or takes that back.
const setState = attempt(async (what) => {
  const picture = current;
  view.end();
  await outbox.settled();
  const on = state.pictures.find((p) => p.name === picture).state !== what;
  const { revision } = await api.setPictureState(picture, on ? what : null);
  latest = Math.max(latest, revision);
  await loadState();
  if (on && picture === current) await openNext();
  else if (current) await reloadLabels();
});

for (const name of TOOLS) $(`tool-${name}`).addEventListener("click", () => setTool(name));
for (const name of ["picture", "labels", "mask", "doubt"]) {
  $(`layer-${name}`).addEventListener("input", (event) => {
    view.opacity[name] = event.target.value / 100;
    view.draw();
  });
}
$("outlines").addEventListener("change", (event) => view.setOutlines(event.target.checked));
$("size").addEventListener("input", (event) => setSize(Number(event.target.value)));
$("undo").addEventListener("click", undo);
$("redo").addEventListener("click", redo);
$("zoom-in").addEventListener("click", () => view.zoom(1.5));
$("zoom-out").addEventListener("click", () => view.zoom(1 / 1.5));
$("zoom-fit").addEventListener("click", () => view.fit());
$("next").addEventListener("click", openNext);
$("before").addEventListener("click", () => openBeside(-1));
$("after").addEventListener("click", () => openBeside(1));
for (const what of ["approved", "skipped"]) $(`set-${what}`).addEventListener("click", () => setState(what));
for (const [id, event, name] of [["search", "input", "search"], ["only", "change", "only"], ["sort", "change", "sort"]]) {
  $(id).addEventListener(event, () => { list[name] = $(id).value; if (outbox) showLists(); });
}
$("skip").addEventListener("click", () => view.canvas.focus());
$("keys").addEventListener("click", showHelp);
rove($("tools"), "button", ["ArrowLeft", "ArrowRight"]);
$("tools").rove();
$("add-class").addEventListener("submit", attempt(async (event) => {
  event.preventDefault();
  const made = await api.addClass($("class-name").value);
  $("class-name").value = "";
  view.label = made.id;
  await loadState();
}));

document.addEventListener("keydown", (event) => {
  if (event.target.matches("input:not([type=range]):not([type=checkbox]), select") || document.querySelector("dialog[open]")) return;
  const key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey) {
    if (key === "z") event.shiftKey ? redo() : undo();
    else if (key === "y") redo();
    else return;
    event.preventDefault();
    return;
  }
  if (event.altKey) return;
  const act = {
    b: () => setTool("brush"), e: () => setTool("erase"), p: () => setTool("polygon"), f: () => setTool("fill"),
    a: () => setTool("accept"), h: () => setTool("pan"), o: () => $("outlines").click(),
    "[": () => setSize(view.size - 1), "]": () => setSize(view.size + 1), n: openNext,
    pageup: () => openBeside(-1), pagedown: () => openBeside(1), y: () => setState("approved"), s: () => setState("skipped"),
    "+": () => view.zoom(1.5), "=": () => view.zoom(1.5), "-": () => view.zoom(1 / 1.5), 0: () => view.fit(),
    escape: () => view.cancel(), "?": showHelp,
  }[key];
  if (key.startsWith("page") && event.target.matches("input")) return; // a slider's
  if (act) {
    if (!event.repeat || "[]+-=".includes(key) || key.startsWith("page")) act();
    if (key.startsWith("page")) event.preventDefault();
  } else if (/^[1-9]$/.test(key) && state.classes[key - 1]) pickClass(state.classes[key - 1].id);
  else if (key === " " && event.target === $("view")) { view.spaceHeld = true; event.preventDefault(); }
});
document.addEventListener("keyup", (event) => { if (event.key === " ") view.spaceHeld = false; });

// Results.

$("finish").addEventListener("click", attempt(async () => {
  showFinish(await api.finish());
  poll();
}));
$("download").addEventListener("click", attempt(async () => {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await api.download($("approved-only").checked));
  link.download = "labels.zip";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}));
$("push").addEventListener("click", () => pushPipeline(say, fail));

// While features are extracted or a head is fitted, the state is looked at again.

let polling = false;

async function poll() {
  if (polling) return;
  polling = true;
  try {
    for (;;) {
      const wasReady = state.pictures.filter((p) => p.ready).length;
      const found = await loadState();
      const ready = found.pictures.filter((p) => p.ready).length;
      if (current && ready !== wasReady) refresh();
      if ($("progress").hidden && found.finish.state !== "running") break;
      await new Promise((resolve) => setTimeout(resolve, 700));
    }
  } catch (error) {
    fail(error);
  } finally {
    polling = false;
  }
}

// What other tabs did is looked for while nothing else is done, and what failed is tried again.
async function watch() {
  if (document.hidden || running || outbox?.items.length || view.stroke || !current) return;
  const found = await loadState();
  if (!$("progress").hidden || found.finish.state === "running") poll();
  if (found.revision <= Math.max(known, latest) && !failed) return;
  await reloadLabels();
  latest = Math.max(latest, known);
  refresh();
}
setInterval(attemptQuietly(watch), 3000);

async function start() {
  const found = await loadState();
  outgoing.changed();
  outbox.run(); // what another page left
  const { ranking } = await api.getSuggestions();
  state.ranking = ranking;
  const names = found.pictures.map((p) => p.name);
  await open(names.includes(wanted()) ? wanted() : ranking[0]?.picture ?? names[0]);
  poll();
}

addEventListener("unhandledrejection", (event) => fail(event.reason));
attempt(start)();
