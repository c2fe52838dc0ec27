// With each run the script tells something else, and this goes along each time. All else goes once: see reader.py.
export default (call) => {
  const tell = () => (window.tokenwireReader ? window.tokenwireReader(call) : setTimeout(tell, 10));
  tell();
};
