// Gives each block of code a button that copies it. Without https, and away from this machine, browsers know no
// navigator.clipboard.
(() => {
  if (window.tokenwireCopy) return;
  const SVG = "http://www.w3.org/2000/svg";
  const COPY = "M9 4h9a2 2 0 0 1 2 2v11h-2V6H9z M6 7h8a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2H6a2 2 0 0 1-2-2V9a2 2 0 0 1 2-2z" +
    "m0 2v10h8V9z";
  const DONE = "M9.5 17.2 4.3 12l1.4-1.4 3.8 3.8 8.8-8.8L19.7 7z";
  const SAID_MS = 1500;
  // Of a block that came in several parts, the first holds all: see markdown.js.
  const BLOCK = ".tw-code:not(.tw-more)";

  window.tokenwireCopy = async (text) => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const area = document.createElement("textarea");
    area.value = text;
    area.style.position = "fixed";
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  };

  // The button has no words of its own: they would be read out, and copied, with the code.
  const says = (button, words, shape) => {
    button.setAttribute("aria-label", words);
    button.title = words;
    button.querySelector("path").setAttribute("d", shape);
  };
  const give = (block) => {
    if (block.querySelector(":scope > .tw-copy")) return;
    const button = document.createElement("button"), svg = document.createElementNS(SVG, "svg");
    button.type = "button";
    button.className = "tw-copy";
    svg.setAttribute("viewBox", "0 0 24 24");
    svg.setAttribute("aria-hidden", "true");
    svg.append(document.createElementNS(SVG, "path"));
    button.append(svg);
    says(button, "Copy code", COPY);
    button.onclick = async () => {
      await window.tokenwireCopy(block.querySelector("code").textContent);
      says(button, "Copied", DONE);
      setTimeout(() => says(button, "Copy code", COPY), SAID_MS);
    };
    block.prepend(button);
  };
  const giveAll = (root) => {
    if (root.matches(BLOCK)) give(root);
    root.querySelectorAll(BLOCK).forEach(give);
  };
  new MutationObserver((changes) => {
    for (const { addedNodes } of changes) {
      for (const node of addedNodes) if (node.nodeType === Node.ELEMENT_NODE && node.isConnected) giveAll(node);
    }
  }).observe(document.body, { childList: true, subtree: true });
  giveAll(document.body);
})();
