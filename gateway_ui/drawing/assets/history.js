// For Back and Forward Streamlit's script in the browser runs the page's script as if another page had been opened: at once,
// and with what it is about to tell a moment later, too. So a question entered in that moment was asked twice, a click was
// lost or counted twice. And it tells a new process of the page the address of the last such step, or else of the moment in
// which the page was loaded. The page goes back and forward by itself (reading.js), and a process is told the address that
// stands there. React alone knows where Streamlit's listener is.
(() => {
  const root = document.getElementById("root");
  if (window.tokenwireHistory || !root) return;
  window.tokenwireHistory = true;
  const container = root[Object.keys(root).find((key) => key.startsWith("__reactContainer$"))];
  const parts = [container?.stateNode?.current];
  while (parts.length) {
    const part = parts.pop();
    if (!part) continue;
    const { stateNode, child, sibling } = part;
    if (typeof stateNode?.onHistoryChange === "function") {
      window.removeEventListener("popstate", stateNode.onHistoryChange);
      stateNode.getQueryString = () => window.location.search.slice(1);
      return;
    }
    parts.push(sibling, child);
  }
})();
