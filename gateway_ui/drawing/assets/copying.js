// The button that copies an answer.
export default ({ parentElement, data }) => {
  const button = parentElement.querySelector("button");
  const words = parentElement.querySelector("span");
  button.onclick = async () => {
    await window.tokenwireCopy(data.text); // of code.js
    words.textContent = "Copied";
    setTimeout(() => (words.textContent = "Copy"), 1500);
  };
};
