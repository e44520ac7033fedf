// Notes every control of the page, and each that gets the focus with an outline. Regions may be replaced meanwhile, so
// a control is known by what it says.
const selector = "a[href], button:enabled, input:enabled:not([type=hidden]), select, textarea, summary";
const describe = (element) =>
  [element.tagName, element.getAttribute("href"), element.name, element.value, element.ariaLabel, element.textContent.trim()].join(" ");
const controls = [...document.querySelectorAll(selector)].filter((it) => it.checkVisibility({ visibilityProperty: true }));
const expected = new Set(controls.map(describe));
const [reached, unmarked] = [new Set(), new Set()];
document.addEventListener("focusin", (event) => {
  reached.add(describe(event.target));
  const style = getComputedStyle(event.target);
  const box = event.target.getBoundingClientRect();
  const isSeen = box.width > 0 && box.right > 0 && box.bottom > 0;
  const hasOutline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2;
  if (!isSeen || !hasOutline) unmarked.add(describe(event.target));
});
window.unreached = () => [
  ...[...expected].filter((it) => !reached.has(it)).map((it) => `it gets no focus: ${it}`),
  ...[...unmarked].map((it) => `its focus is not seen: ${it}`),
];
document.activeElement.blur();
return controls.length;
