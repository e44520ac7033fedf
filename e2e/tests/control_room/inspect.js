// What is wrong with the page as it is laid out: names, headings, tables, live regions, width and contrast.
const faults = [];
const shown = (element) => element.checkVisibility({ visibilityProperty: true });
const all = (selector) => [...document.querySelectorAll(selector)].filter(shown);
const describe = (element) => element.outerHTML.replace(/\s+/g, " ").slice(0, 120);
const check = (holds, what, element) => { if (!holds) faults.push(what + (element ? `: ${describe(element)}` : "")); };

check(document.documentElement.lang, "the page has no language");
check(document.title, "the page has no title");
check(all("h1").length === 1, `${all("h1").length} headings of the first level`);
check(all("main").length === 1, "the page has no main part");
all("h1, h2, h3, h4").reduce((before, heading) => {
  const level = Number(heading.tagName[1]);
  check(level <= before + 1, "a level of headings is left out", heading);
  return level;
}, 0);

const ids = [...document.querySelectorAll("[id]")].map((element) => element.id);
check(new Set(ids).size === ids.length, `an id is used twice among ${ids}`);
const hasName = (element) => element.ariaLabel || element.textContent.trim();
all("a, button, summary").forEach((element) => check(hasName(element), "it has no name", element));
all("input:not([type=hidden]), select, textarea").forEach((element) =>
  check(element.ariaLabel || [...element.labels].some(hasName), "it has no label", element));
all("nav").forEach((element) => check(element.ariaLabel, "the navigation has no name", element));
all("svg").forEach((element) =>
  check(element.ariaLabel || element.ariaHidden || element.closest("[aria-hidden]"), "the picture has no text", element));
all("table").forEach((table) => {
  [...table.querySelectorAll("thead th")].forEach((head) =>
    check(hasName(head) || head.querySelector("[aria-label]"), "the column has no name", head));
  [...table.querySelectorAll("tbody tr")].forEach((row) =>
    check(row.querySelector("th[scope=row]"), "the row has no name", row));
});
all("[data-stream]").forEach((element) =>
  check(document.querySelector("main [aria-live], main [role=status]"), "no change is spoken", element));

check(document.documentElement.scrollWidth <= window.innerWidth, `the page is wider than ${window.innerWidth} px`);

// The contrast of every text with what is behind it. A canvas turns each notation of a colour into its channels.
const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
const context = canvas.getContext("2d", { willReadFrequently: true });
const channels = (colour) => {
  context.clearRect(0, 0, 1, 1);
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
};
const luminance = (colour) => {
  const [red, green, blue] = colour.map((channel) => channel / 255)
    .map((channel) => (channel <= 0.03928 ? channel / 12.92 : ((channel + 0.055) / 1.055) ** 2.4));
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
};
const ground = (element) => {
  for (let it = element; it; it = it.parentElement) {
    const colour = channels(getComputedStyle(it).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return channels("white");
};
const contrast = (a, b) => {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
};
const checkContrast = (element, colour) => {
  const found = contrast(channels(colour), ground(element));
  check(found >= 4.5, `its contrast is ${found.toFixed(2)}`, element);
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let node = texts.nextNode(); node; node = texts.nextNode()) {
  const element = node.parentElement;
  if (!node.data.trim() || !shown(element) || element.closest(":disabled, script, style")) continue;
  const style = getComputedStyle(element);
  checkContrast(element, element.closest("svg") ? style.fill : style.color);
}
all("[placeholder]").forEach((element) => checkContrast(element, getComputedStyle(element, "::placeholder").color));
// The edge of a control shows where it is.
all("input:not([type=hidden]):not([type=checkbox]), select, textarea, button").forEach((element) => {
  const edge = contrast(channels(getComputedStyle(element).borderTopColor), ground(element.parentElement));
  check(element.disabled || edge >= 3, `the contrast of its edge is ${edge.toFixed(2)}`, element);
});
return faults;
