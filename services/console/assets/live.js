// Keeps the regions of a page current: each message names a region and has its markup. Without this script a page
// shows what was true when it was loaded.
(() => {
  // The server is heard every five seconds at least.
  const CONNECT_MILLIS_MAX = 5000, SILENT_MILLIS_MAX = 12000;
  // A browser keeps six connections to a host for all tabs. Pages need some of them.
  const STREAMS_MAX = 4;

  const page = document.querySelector("[data-stream]");
  if (page) {
    const state = document.getElementById("stream-state");
    const [shown, waiting] = [new Map(), new Map()];
    let connection = ["as loaded", ""], isPressed = false;
    const showState = () => {
      const [text, kind] = waiting.size && !isPressed ? ["paused while you select", ""] : connection;
      [state.textContent, state.className] = [text, `live ${kind}`];
    };
    const show = (text, kind) => { connection = [text, kind]; showState(); };

    // A region waits while a person selects its text or presses a button of the mouse.
    const isHeld = (place) => {
      const { isCollapsed, anchorNode, focusNode } = document.getSelection();
      return isPressed || (!isCollapsed && [anchorNode, focusNode].some((node) => place.contains(node)));
    };
    const controls = (place) => [...place.querySelectorAll("a, button, input, select, textarea, summary")];
    const key = (it) => [it.tagName, it.id, it.name, it.value, it.getAttribute("href"), it.form?.getAttribute("action")].join("\n");
    const replace = (place, markup) => {
      const focused = controls(place).find((it) => it === document.activeElement);
      const scrolled = [...place.querySelectorAll(".scroll")].map((it) => it.scrollLeft);
      const ran = place.querySelector("[data-runs]");
      place.innerHTML = markup;
      if (focused) controls(place).find((it) => key(it) === key(focused))?.focus({ preventScroll: true });
      place.querySelectorAll(".scroll").forEach((it, nth) => { it.scrollLeft = scrolled[nth] ?? 0; });
      // A job that has ended has changed what the rest of its page shows.
      if (ran && !place.querySelector("[data-runs]")) window.location.reload();
    };
    const refresh = () => {
      for (const [region, markup] of waiting) {
        const place = document.getElementById(region);
        if (place && isHeld(place)) continue;
        waiting.delete(region);
        if (place && shown.get(region) !== markup) replace(place, markup);
        shown.set(region, markup);
      }
      showState();
    };
    document.addEventListener("selectionchange", refresh);
    document.addEventListener("pointerdown", () => { isPressed = true; });
    // A click follows the release.
    const release = () => setTimeout(() => { isPressed = false; refresh(); });
    ["pointerup", "pointercancel", "dragend"].forEach((name) => document.addEventListener(name, release));

    let source, timer;
    const giveUp = () => { show("no connection", "is-bad"); open(); };
    const expect = (millis) => { clearTimeout(timer); timer = setTimeout(giveUp, millis); };
    const heard = () => { show("live", "is-good"); expect(SILENT_MILLIS_MAX); };
    const close = (why) => { source?.close(); source = undefined; clearTimeout(timer); show(why, ""); };
    const open = () => {
      source?.close();
      source = new EventSource(page.dataset.stream);
      source.onopen = heard;
      source.addEventListener("alive", heard);
      source.onmessage = (message) => {
        const { region, markup } = JSON.parse(message.data);
        waiting.set(region, markup);
        heard();
        refresh();
      };
      source.onerror = () => show("no connection", "is-bad");
      expect(CONNECT_MILLIS_MAX);
    };

    // The token of an operator ends while the page is open. If a proxy renews it, the stream goes on.
    const ended = document.getElementById("sign-in-ended");
    if (ended) {
      const end = Date.now() + ended.dataset.seconds * 1000;
      setInterval(() => { ended.hidden = Date.now() < end || connection[0] === "live"; }, 1000);
    }

    // The tabs that were looked at last have a stream, and a hidden one has none.
    const tabs = new BroadcastChannel("streams"), tab = Math.random(), later = new Set();
    const pause = () => { close("paused"); tabs.postMessage([tab, false]); };
    const follow = () => { later.clear(); tabs.postMessage([tab, true]); if (!source) open(); };
    tabs.onmessage = ({ data: [other, follows] }) => {
      if (follows) later.add(other); else later.delete(other);
      if (later.size >= STREAMS_MAX) {
        if (source) close("paused: other tabs are live");
      } else if (!source && !document.hidden) follow();
    };
    const look = () => (document.hidden ? pause() : follow());
    document.addEventListener("visibilitychange", look);
    window.addEventListener("focus", look);
    window.addEventListener("pagehide", pause);
    window.addEventListener("pageshow", look);
  }
  // A form that gives something up asks once more.
  document.addEventListener("submit", (event) => {
    const question = event.submitter?.dataset.question || event.target.dataset.question;
    if (question && !window.confirm(question)) event.preventDefault();
  });
  // One box selects all rows of its table.
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-selects]")) return;
    const boxes = document.querySelectorAll(`input[name="${event.target.dataset.selects}"]`);
    boxes.forEach((box) => { box.checked = event.target.checked; });
  });
})();
