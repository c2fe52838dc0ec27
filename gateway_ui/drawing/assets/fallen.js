// Streamlit takes all of the page away where it is told of a part and never was of what that stands in, as when the first
// half of a run is lost with a connection. What was asked and typed is kept, so the page is loaded anew and shows it.
(() => {
  const ROOT = document.getElementById("root");
  if (window.tokenwireStands || !ROOT) return;
  window.tokenwireStands = true;
  const FALLEN = "tokenwire-fallen";
  const REST_MS = 10_000; // between two times, in case it falls each time
  const rest = () => {
    try {
      const last = Number(window.sessionStorage.getItem(FALLEN) ?? 0);
      return Math.max(0, last + REST_MS - Date.now());
    } catch {
      return REST_MS; // it can't be kept when the last time was
    }
  };
  const anew = () => {
    try {
      window.sessionStorage.setItem(FALLEN, String(Date.now()));
    } catch {
      // There is no room for it.
    }
    location.reload();
  };
  new MutationObserver((_, observer) => {
    if (ROOT.childElementCount) return;
    observer.disconnect();
    setTimeout(anew, rest());
  }).observe(ROOT, { childList: true });
})();
