// Window and level: which values of a picture are black and white on the page. The model sees the picture as it is.

const $ = (id) => document.getElementById(id);

export class Display {
  // `changed` is called after the user chose another one; what was chosen stays, for all pictures of the session.
  constructor(name, changed) {
    this.name = `diffuseseg-display-${name}`;
    try {
      this.chosen = JSON.parse(localStorage.getItem(this.name) ?? "{}");
    } catch {
      this.chosen = {};
    }
    this.channels = {}; // by picture, as far as it is known
    this.moving = false; // a slider is: a smaller picture is enough
    let timer;
    const choose = (values, moving = false) => {
      this.chosen = { ...this.chosen, ...values };
      this.moving = moving;
      try { localStorage.setItem(this.name, JSON.stringify(this.chosen)); } catch { /* for this page alone */ }
      clearTimeout(timer);
      timer = setTimeout(changed, 60);
    };
    const slide = (id, values) => {
      for (const event of ["input", "change"]) {
        $(id).addEventListener(event, () => { const found = values(); if (found) choose(found, event === "input"); });
      }
    };
    const window = () => {
      const [low, high] = ["low", "high"].map((end) => Number($(`display-${end}`).value));
      return high > low ? { low, high } : null;
    };
    slide("display-low", window);
    slide("display-high", window);
    for (const end of ["low", "high"]) {
      $(`display-${end}-value`).addEventListener("change", (event) => {
        const values = { ...this.shown, [end]: Number(event.target.value) };
        if (event.target.value !== "" && values.high > values.low) choose(values);
        else event.target.value = this.shown[end];
      });
    }
    slide("display-gamma", () => ({ gamma: 2 ** Number($("display-gamma").value) }));
    $("display-invert").addEventListener("change", (event) => choose({ invert: event.target.checked }));
    $("display-channel").addEventListener("change", (event) => choose({ channel: event.target.value || undefined }));
    $("display-reset").addEventListener("click", () => {
      this.chosen = {};
      choose({});
    });
  }

  // A picture as it was chosen; a channel is asked for where the picture has it.
  async get(picture, load) {
    const { channel, ...rest } = this.chosen;
    const wanted = (found) => channel !== undefined && found?.includes(channel);
    const known = this.channels[picture];
    const found = await load(wanted(known) ? { ...rest, channel } : rest);
    this.channels[picture] = found.display.channels;
    return !known && wanted(found.display.channels) ? load({ ...rest, channel }) : found;
  }

  // Sets the controls to what the server answered.
  show(found) {
    this.shown = { low: found.low, high: found.high };
    const [least, most] = [found.least ?? found.low, found.most ?? found.high];
    const [from, to] = [Math.min(least, found.low), Math.max(most, found.high)];
    for (const end of ["low", "high"]) {
      const slider = $(`display-${end}`);
      slider.min = from;
      slider.max = to;
      slider.step = Number.isInteger(from) && Number.isInteger(to) ? 1 : (to - from) / 1000 || "any";
      slider.disabled = from === to;
      slider.value = found[end];
      $(`display-${end}-value`).value = Number(found[end].toPrecision(6));
    }
    $("display-gamma").value = Math.log2(this.chosen.gamma ?? 1);
    $("display-gamma-value").textContent = (this.chosen.gamma ?? 1).toFixed(2);
    $("display-invert").checked = !!this.chosen.invert;
    const channels = $("display-channel");
    channels.parentElement.hidden = found.channels.length < 2;
    channels.replaceChildren(new Option("all", ""), ...found.channels.map((name) => new Option(name, name)));
    channels.value = found.channel ?? "";
    $("display-reset").disabled = !Object.keys(this.chosen).length;
  }
}
