// The button that copies an answer. Without https, and away from this machine, browsers know no navigator.clipboard.
const copy = async (text) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const area = document.createElement("textarea");
  area.value = text;
  area.style.position = "fixed";
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
};

export default ({ parentElement, data }) => {
  const button = parentElement.querySelector("button");
  const words = parentElement.querySelector("span");
  button.onclick = async () => {
    await copy(data.text);
    words.textContent = "Copied";
    setTimeout(() => (words.textContent = "Copy"), 1500);
  };
};
