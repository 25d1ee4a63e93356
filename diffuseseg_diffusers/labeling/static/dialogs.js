// Dialogs: a class, the keys, the push to the Hub.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);

for (const button of document.querySelectorAll("dialog .close")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}

// Renames, merges, moves or deletes a class. `current` gives the classes as they are now; `change` does what it is given
// and shows what came of it.
export function editClass(id, current, change) {
  const dialog = $("class-dialog");
  const [classes, at] = [current(), current().findIndex((one) => one.id === id)];
  const own = classes[at];
  const others = classes.filter((one) => one.id !== id);
  $("class-title").textContent = `Class “${own.name}”`;
  $("class-rename").value = own.name;
  $("class-into").replaceChildren(new Option("choose …", ""), ...others.map((one) => new Option(one.name, one.id)));
  $("class-up").disabled = at === 0;
  $("class-down").disabled = at === classes.length - 1;
  $("class-error").textContent = "";
  // What is refused is said in the dialog, which stays as it is.
  const act = (button, action, stays = false) => {
    $(button).onclick = async (event) => {
      event.preventDefault();
      try {
        if (await change(action) === false) return;
        if (!stays) dialog.close();
        else if (dialog.open) editClass(id, current, change); // it may have been closed meanwhile
      } catch (error) {
        $("class-error").textContent = error.message;
      }
    };
  };
  const move = (step) => () => {
    const order = classes.map((one) => one.id);
    [order[at], order[at + step]] = [order[at + step], order[at]];
    return api.orderClasses(order);
  };
  act("class-up", move(-1), true);
  act("class-down", move(1), true);
  act("class-save", async () => {
    const [name, into] = [$("class-rename").value, $("class-into").value];
    if (into) await api.mergeClass(id, Number(into));
    else if (name !== own.name) await api.changeClass(id, { name });
  });
  act("class-delete", async () => {
    const drawn = own.pixels ? ` ${own.pixels.toLocaleString("en")} pixels in ${own.pictures} of the pictures lose their label.` : "";
    if (!confirm(`Delete “${own.name}”?${drawn} This cannot be undone.`)) return false;
    return api.deleteClass(id);
  });
  if (!dialog.open) dialog.showModal();
}

// Asks for a repository and a token, and pushes; `said` shows how far it is.
export function pushPipeline(said, failed) {
  const dialog = $("push-dialog");
  $("push-form").onsubmit = async (event) => {
    event.preventDefault();
    const [repo_id, token] = [$("push-repo").value, $("push-token").value];
    $("push-token").value = "";
    dialog.close();
    said(`Pushing to ${repo_id} …`);
    try {
      const { url } = await api.push({ repo_id, token, private: $("push-private").checked });
      said(`Pushed: ${url}`);
    } catch (error) {
      said("");
      failed(error);
    }
  };
  dialog.showModal();
}

export const showHelp = () => $("help").showModal();
