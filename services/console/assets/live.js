// Keeps the regions of a page current: each message names a region and has its markup. Without this script a page
// shows what was true when it was loaded.
(() => {
  const page = document.querySelector("[data-stream]");
  if (page) {
    const state = document.getElementById("stream-state");
    const source = new EventSource(page.dataset.stream);
    source.onmessage = (message) => {
      const { region, markup } = JSON.parse(message.data);
      const place = document.getElementById(region);
      if (!place || place.innerHTML === markup || place.contains(document.activeElement)) return;
      const ran = place.querySelector("[data-runs]");
      place.innerHTML = markup;
      // A job that has ended has changed what the rest of its page shows.
      if (ran && !place.querySelector("[data-runs]")) window.location.reload();
    };
    const show = (text, kind) => { if (state) { state.textContent = text; state.className = `live ${kind}`; } };
    source.onopen = () => show("live", "is-good");
    source.onerror = () => show("no connection", "is-bad");
  }
  // The token of an operator ends while the page is open.
  const ended = document.getElementById("sign-in-ended");
  if (ended) {
    const end = Date.now() + ended.dataset.seconds * 1000;
    const timer = setInterval(() => {
      if (Date.now() < end) return;
      clearInterval(timer);
      ended.hidden = false;
    }, 1000);
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
